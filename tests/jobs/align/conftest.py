from step_fixtures import hasty, make, params, rows_of_several_widths  # noqa: F401

"""Post-pretraining alignment (PPA): TLM and momentum contrast on parallel text. The main job.

    python -m ppa_jax.main --config=configs/ppa.py --workdir=runs/x --config.init=bert-base-multilingual-cased \\
        --config.data.pairs="en-fr=europarl/fr-en,en-de=europarl/de-en" --config.eval.tatoeba=tatoeba/v1

Without a mode this is the paper's recipe for mBERT (arXiv 2010.12547). Its code was not published: settings marked
(recalled) are quoted from memory of the paper; check them before you cite them. Expect the aligned model in
runs/x/export, in the Hugging Face format, and retrieval before and after alignment in runs/x/report.md.

    python -m ppa_jax.main --config=configs/ppa.py:demo --workdir=runs/demo

briefly trains a small masked LM on the built-in sample and aligns it, in under 4 minutes on two CPU cores. Retrieval
among 500 unseen sentences rises from chance (0.2%) to 97-99%, depending on the seed, with mean pooling of the trained
layer (96-98% at layer 1).
"""

from typing import Any

from ml_collections import config_dict


def get_config(mode: str = "") -> Any:
    """The recipe; mode "demo" or "demo_words" for the built-in sample."""
    c: Any = config_dict.create(
        job="align",  # what is run
        init="",  # Hugging Face directory, gs:// or hub name; empty: a new model is pretrained first (model, pretrain)
        seed=0,  # of initialisation, data order, masks and dropout
        dtype="bfloat16",  # of the matmuls; parameters, optimizer, EMA, softmax and losses are float32
        data=dict(
            pairs="",  # lang1-lang2[-lang3...]=SOURCE,...: file.tsv, x.csv, prefix, a|b, hf:NAME, ... (docs/data.md)
            max_length=128,  # tokens of a sentence, including special tokens; longer ones are truncated (recalled)
            min_pieces=10,  # tokens: a pair is dropped if either side has fewer (recalled)
            max_pair_pieces=128,  # or if both together have more (recalled)
            max_characters=10_000,  # a longer line is skipped
            skip_lines="<range>",  # comma-separated markers; a side that is only a marker is skipped
            drop_identical=False,  # drop pairs whose sides are the same text
            drop_duplicates=False,  # keep only the first of equal pairs in a source
            temperature=1.0,  # T: a language pair is drawn with probability ~ n**(1/T)
            shuffle_sides=True,  # random input shuffling: which side comes first, and feeds the query encoder
            row_length=0,  # tokens of the widest packed rows; 0: the longest sequence, rounded up to a multiple of 64
            cache="",  # where corpora are prepared once; empty: ~/.cache/ppa_jax
            workers=0,  # processes that make batches; 0: threads of the main process
        ),
        train=dict(
            steps=0,  # optimizer steps; 0: by epochs
            epochs=10.0,  # passes over all pairs (recalled: 10; 5 for 2M pairs)
            batch_size=128,  # pairs, global (recalled)
            learning_rate=3e-5,  # peak (recalled)
            warmup=0.1,  # share of the steps; 1 or more: number of steps (recalled)
            weight_decay=0.01,  # not on biases and LayerNorm (recalled)
            clip=1.0,  # global norm of the gradient; 0: none (not stated in the paper)
            dropout=-1.0,  # -1: as the model was pretrained
            freeze="",  # what is not trained of the encoder: embeddings, blocks from 0 as 0-5, or embeddings,0-5
            accumulate=1,  # gradient accumulation steps per batch
            remat=False,  # recompute blocks and logits in the backward pass: less memory, a third more operations
            scan=False,  # compile one block and loop over the layers: starts sooner; use it with remat
        ),
        contrastive=dict(
            weight=1.0,  # 0: TLM alone (recalled: the losses are summed)
            objective="momentum",  # or ranking: both sides through one encoder, among the batch; not PPA's
            symmetric=False,  # momentum in both directions; not PPA's
            queue_size=32_000,  # keys, rounded up to whole batches (recalled with little confidence: 32,000 or 64,000)
            momentum=0.999,  # of the key encoder (recalled)
            temperature=0.05,  # (recalled)
            learn_temperature=False,  # train it from that value on, not below 0.01; not PPA's
            margin=0.0,  # subtracted from the cosine of a pair (LaBSE: 0.3, recalled); not PPA's
            projection_dim=300,  # (recalled)
            layer=0,  # whose states are pooled; -1: the last; 0: a SentenceTransformer's own, else the last
            pooling="",  # cls or mean; empty: a SentenceTransformer's own, else cls
            mask_duplicates=True,  # ignore negatives with the same text as the positive
            in_batch=False,  # momentum: the other keys of the batch are negatives too
            key_dropout=True,  # momentum: dropout in the key encoder, as in MoCo's training mode
        ),
        tlm=dict(
            weight=1.0,  # 0: contrast alone
            mask_rate=0.15,  # share of the tokens that are predicted
            joint=True,  # False: each sentence alone, which is plain masked LM on the same text (the control)
            language_embeddings=False,  # XLM's form: token types are languages, positions restart; not PPA's
            dict_mlm="",  # input or label: DICT-MLM, by word_alignment.dictionaries (objectives/masking.py); not PPA's
        ),
        distill=dict(  # the vectors of both sentences towards a teacher's, as make_multilingual does; not PPA's
            teacher="",  # SentenceTransformer or Hugging Face directory, or hub name; empty: off
            weight=1.0,  # beside the other losses
            loss="mse",  # mean squared difference; or cosine
            language="en",  # whose sentences the teacher reads; where a pair lacks it, those of its first language
        ),
        rtl=dict(  # representation translation, DAP's (arXiv 2305.09148); no part of PPA
            weight=0.0,  # DAP's code has 0.1; 0: off
            target="en",  # languages that are rebuilt from their translations: the first of the list that a pair has
        ),
        word_alignment=dict(  # the auxiliary loss of ALIGN-MLM; no part of PPA
            weight=0.0,  # of minus the mean cosine of dictionary pairs' word embeddings; ALIGN-MLM has 10; 0: off
            dictionaries="",  # directory with en-xx.tsv (MUSE), comma-separated files, or sample: the sample's
            max_words=5000,  # English words from the top of each file; 0: all. Lexicon induction tests later ones
            capitalised=True,  # add every word in its capitalised form: MUSE's words are lower-case
        ),
        mesh=dict(
            data=-1,  # devices that split the batch; -1: all
            rules="replicated",  # or fsdp: parameters are split and gathered for the step
            fsdp=-1,  # devices in a group that splits the parameters (rules=fsdp); -1: all of mesh.data
            distributed=False,  # several hosts: jax.distributed.initialize() first
        ),
        checkpoint=dict(
            every=500,  # steps; 0: only at the end and on SIGTERM
            keep=2,  # newest checkpoints
        ),
        eval=dict(
            tatoeba="",  # directory with tatoeba.xxx-eng.{xxx,eng}; empty: no retrieval
            every=0,  # steps; 0: only before and after
            sample=0,  # retrieval among this many sentences at the end of the built-in sample
            pairs="",  # retrieval among your own held-out pairs, in the forms of data.pairs: en-de=dev.tsv
        ),
        export=dict(
            select=False,  # layer and pooling of the export: the best on eval.pairs, if better beyond chance
        ),
        log=dict(
            tensorboard=True,  # write curves into the workdir
            wandb="",  # Weights & Biases project
            trackio="",  # trackio project
        ),
        plan="",  # true, or a TPU slice such as v5e:4x4: print memory, operations and traffic of a step and exit
        profile=False,  # trace steps 10 to 14 into workdir/profile
        model=dict(  # of a new model, when init is empty
            family="bert",  # or modernbert
            tokenizer="",  # Hugging Face directory or name whose vocabulary to use; empty: one is trained
            vocabulary="wordpiece",  # trained on the pairs' text; or bpe (byte-level, like RoBERTa's)
            vocab_size=4000,  # of the vocabulary that is trained
            hidden_size=256,  # width; the feed-forward layers are four times as wide (modernbert: 1.5 times, gated)
            num_layers=4,  # blocks
            num_heads=4,  # of attention
        ),
        pretrain=dict(  # of a new model: masked LM on the sentences of data.pairs, never as pairs
            steps=0,  # optimizer steps
            batch_size=64,  # sentences, global
            learning_rate=1e-3,  # peak
        ),
    )
    if mode in ("demo", "demo_words"):
        languages = ("de", "es", "ru", "zh")
        c.data.pairs = ",".join(f"en-{language}=sample:0-20000" for language in languages)
        c.data.update(max_length=32, min_pieces=1, max_pair_pieces=60)
        c.model.update(vocab_size=1500, hidden_size=64, num_layers=2, num_heads=2)
        c.pretrain.update(steps=60, batch_size=64, learning_rate=1e-4)
        # Such a small model, trained briefly, needs other settings than mBERT: mean pooling, little TLM, in-batch
        # negatives, no dropout, and a lower momentum. Not much lower, though: with 0.95 the result depends on the seed,
        # and with 0.8 nothing is learned (docs/results/demo.md).
        c.train.update(steps=400, epochs=0.0, batch_size=128, learning_rate=3e-3, dropout=0.0)
        c.contrastive.update(pooling="mean", queue_size=512, in_batch=True, momentum=0.98, projection_dim=64)
        c.tlm.weight = 0.1
        c.eval.sample = 500
        c.dtype = "float32"
        if mode == "demo_words":
            # For the demos of fine-tuning, which need aligned words: whole words as tokens, the contrast below the last
            # block, and the loss on the sample's dictionary (docs/results/demo.md).
            c.model.vocab_size, c.train.steps = 4000, 350
            c.contrastive.layer = 1
            c.word_alignment.update(weight=10.0, dictionaries="sample")
    elif mode:
        raise ValueError(f"unknown mode {mode!r}; there are: demo, demo_words")
    return c

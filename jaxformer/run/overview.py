"""The overview that a run prints at its start: device, model and data."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.attention.dispatch import Choice
from jaxformer.data.corpus import parts_of
from jaxformer.data.packing import packing_report
from jaxformer.data.phases import Span
from jaxformer.data.reader import Reader
from jaxformer.devices.options import recorded_options
from jaxformer.experiment.experiment import Experiment, spans_of, trained_tokens, training_flops
from jaxformer.flops import describe_parameters
from jaxformer.host.console import print_wrapped
from jaxformer.run.inputs import Data
from jaxformer.step import TrainState


def print_overview(experiment: Experiment, state: TrainState, data: Data, attention: Choice, fit: str) -> None:
    """Prints the overview, once at the start; fit is the text of `fit_to_device`."""
    device, spans = jax.devices()[0], spans_of(experiment)
    devices = 1 if state.mesh is None else state.mesh.size
    print_wrapped(f"device      {devices} x {device.device_kind}, {jnp.dtype(state.compute_dtype).name} matmuls")
    if options := ", ".join(f"{name}={value}" for name, value in recorded_options().items()):
        print_wrapped(f"options     {options}: comparable only with runs that have the same")
    if state.mesh is not None:
        parts = ", ".join(f"{name} {size}" for name, size in state.mesh.shape.items())
        rows = ", then ".join(str(each) for each in dict.fromkeys(span.rows_per_step // devices for span in spans))
        print_wrapped(f"mesh        {parts}; {jax.process_count()} processes; {rows} rows a device")
    print_wrapped(f"attention   {attention}")
    print_wrapped(f"memory      {fit}")
    given = data.tokenizer
    marks = f"BOS {given.bos}, EOS {given.eos}"
    print_wrapped(f"tokenizer   {given.kind}, {given.vocabulary_size} pieces, {marks}, digest {given.digest[:12]}")
    for i, config in enumerate(parts_of(experiment.corpus)):
        _print_corpus(data, i, config.kind, spans)
    for task, encoded in data.tasks:
        cut = f", {encoded.is_truncated.sum():,} requests cut to a row" if encoded.is_truncated.any() else ""
        count = f"{len(task.items):,} of {task.official_items:,} official items"
        print_wrapped(f"task        {task.task.name}: {count}, {task.source}, digest {task.digest[:12]}{cut}")
    print_wrapped(f"parameters  {describe_parameters(experiment.model, spans[0].row_length)}")
    steps, tokens = experiment.training.steps, trained_tokens(experiment)
    per_token = f"{training_flops(experiment) / tokens / 1e6:,.1f} MFLOPs per token"
    if len(spans) == 1:
        print_wrapped(f"training    {steps:,} steps of {spans[0].size}, {tokens:,} in all; {per_token}")
        return
    print_wrapped(f"training    {steps:,} steps in phases, {tokens:,} tokens in all; {per_token}")
    for span in spans:
        print_wrapped(f"            from step {span.first_step:,}: {span}")


def _print_corpus(data: Data, number: int, kind: str | Reader, spans: Sequence[Span]) -> None:
    """Prints a corpus, and how it is packed."""
    corpus, m = data.corpora[number], data.corpora[number].training.manifest
    rows = {span: span.rows_by_corpus[number] for span in spans}
    of_all = sum(rows.values()) / sum(span.steps * span.rows_per_step for span in spans)
    share = f", {of_all:.0%} of the rows" if len(data.corpora) > 1 else ""
    print_wrapped(f"corpus      {m.origin} (kind: {kind}, licence: {m.licence}), digest {m.corpus_digest[:12]}{share}")
    bad = f"; {m.bad:,} bad records left out" if m.bad else ""
    keys = f" ({m.keys:,} keys)" if 0 < m.keys < sum(m.documents.values()) else ""
    print_wrapped(
        f"            {len(corpus.documents):,} documents{keys}, {corpus.tokens:,} tokens to train on, "
        f"{m.documents['validation']:,} to validate; {m.duplicates} duplicates and {m.empty} empty removed{bad}"
    )
    for line in corpus.describe():
        print_wrapped(f"            {line}")
    for row_length, plans in data.plans.items():
        plan = plans[number]
        if not len(plan):
            continue
        passes = sum(count for span, count in rows.items() if span.row_length == row_length) / len(plan)
        is_dealt = len(data.plans) > 1
        report = packing_report(
            plan, corpus.training.tokens, np.unique(plan.documents) if is_dealt else corpus.documents
        )
        of_length = f"rows of {row_length:,} tokens: " if is_dealt else ""
        print_wrapped(f"packing     {of_length}{report}; {passes:.3g} passes over the rows")

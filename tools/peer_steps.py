"""Training steps of other projects, by their own code from a checkout; for `bench_peers`.

Each function returns a function that makes `turn` steps on random tokens and waits for them, and the parameters of the
model. The models have the width, depth, heads and vocabulary that are asked for, a feed-forward of 4 x width and no
biases; they attend causally over whole rows. Precision is float32 on a CPU, and bfloat16 as the project does it on a
GPU.
"""

import contextlib
import importlib
import io
import sys
import types
from pathlib import Path

import numpy as np


def nanogpt_step(checkout: Path, size, rows: int, T: int, turn: int, *, compiled: bool):
    """nanoGPT: its `model.GPT` and `configure_optimizers`, and the step as in its train.py, where it is no function."""
    import torch

    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    context = contextlib.nullcontext() if device == "cpu" else torch.amp.autocast(device, torch.bfloat16)
    config = GPTConfig(
        block_size=T,
        vocab_size=size.vocabulary_size,
        n_layer=size.depth,
        n_head=size.heads,
        n_embd=size.width,
        dropout=0.0,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model = GPT(config).to(device)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    parameters = sum(p.numel() for p in model.parameters())
    if compiled:
        model = torch.compile(model)
    x, y = (torch.randint(size.vocabulary_size, (rows, T), device=device) for _ in range(2))

    def run():
        for _ in range(turn):
            with context:
                _, loss = model(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert np.isfinite(loss.item())

    return run, parameters


def nanodo_step(checkout: Path, size, rows: int, T: int, turn: int):
    """nanodo: its model, loss and optimizer, its initialisation, and its `Trainer.do_step`, under its default config.

    Its metrics of single layers are left out, and the gradient is clipped at 1.0 as in the others.
    """
    sys.path.insert(0, str(checkout))
    # What its loop logs with needs TensorFlow; its step does not.
    for name in ("clu.metric_writers", "clu.periodic_actions"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__getattr__ = lambda name: object
    import jax
    from nanodo import model_factory, train
    from nanodo.configs import default

    config = default.get_config()
    config.model.update(
        D=size.width,
        H=size.heads,
        L=T,
        N=size.depth,
        F=4 * size.width,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )
    config.opt.clip_by_global_norm = 1.0
    config.log_internal_metrics = False
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    module, loss = model_factory.get_model_and_loss(config, size.vocabulary_size)
    shardings, state = train._init_train_state(config, module, jax.random.PRNGKey(config.seed), mesh)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    trainer = train.Trainer(config, state, mesh, shardings, loss)
    tokens_BT = np.random.default_rng(0).integers(1, size.vocabulary_size, (rows, T), dtype=np.int32)

    def run():
        for _ in range(turn):
            metrics = trainer.do_step(1, tokens_BT)
        jax.block_until_ready((trainer.state, metrics))

    return run, parameters

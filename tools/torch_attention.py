"""PyTorch's ways to compute attention over packed documents, timed on a GPU; for `bench_attention`.

Queries, keys and values are (B, T, H, K) in bfloat16, as a trainer's projections leave them.
"""

import functools
import importlib.util
import inspect
import statistics

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def serve(connection) -> None:
    """Answers each `(B, T, H, G, K, segment_ids)` with the `measure` of it."""
    while True:
        *shape, segment_ids_BT = connection.recv()
        try:
            answer = measure(*shape, segment_ids_BT=torch.from_numpy(segment_ids_BT).cuda())
        except Exception as error:
            answer = {"forward": {}, "forward_backward": {}}, {"torch": reason(error)}
        connection.send(answer)


def measure(
    B: int, T: int, H: int, G: int, K: int, segment_ids_BT
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Returns the median milliseconds of each way, by "forward" and "forward_backward"; and why others failed."""
    # What was compiled for eight other shapes would keep this one from being compiled.
    torch._dynamo.reset()
    q, k, v, do_BTHK = (torch.randn((B, T, n, K), device="cuda", dtype=torch.bfloat16) for n in (H, G, G, H))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attend = ways(T, segment_ids_BT)

    def forward(attended):
        with torch.no_grad():
            attended(*inputs)

    def both(attended):
        torch.autograd.grad(attended(*inputs), inputs, do_BTHK)

    forwards = {name: functools.partial(forward, attended) for name, attended in attend.items()}
    forwards["torch_flex_mask_alone"] = functools.partial(document_mask, segment_ids_BT)
    forward_times, failed = milliseconds(forwards)
    both_times, more = milliseconds({name: functools.partial(both, attended) for name, attended in attend.items()})
    return {"forward": forward_times, "forward_backward": both_times}, failed | more


def ways(T: int, segment_ids_BT) -> dict:
    """Returns functions of `(q, k, v)` to the output, by name."""
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    block_mask = document_mask(segment_ids_BT)

    def flex(q, k, v, mask=None):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        grouped = {"enable_gqa": True} if k.shape[2] != q.shape[2] else {}
        return compiled(*heads_first, block_mask=mask or document_mask(segment_ids_BT), **grouped).transpose(1, 2)

    functions = {
        "torch_sdpa_causal": sdpa_causal,
        "torch_flex": functools.partial(flex, mask=block_mask),
        "torch_flex_and_mask": flex,
    }
    borders = torch.nonzero(torch.diff(segment_ids_BT.flatten(), prepend=segment_ids_BT.new_full((1,), -1)))
    row_starts = torch.arange(0, segment_ids_BT.numel(), T, device=segment_ids_BT.device)
    offsets = torch.unique(torch.cat([borders.flatten(), row_starts, row_starts[-1:] + T])).int()
    longest = int(torch.diff(offsets).max())
    if varlen := varlen_function():
        functions["torch_varlen"] = functools.partial(varlen_attention, varlen, offsets, longest)
    return functions


def sdpa_causal(q, k, v):
    """Plain causal attention, whatever the documents."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    grouped = {"enable_gqa": True} if k.shape[2] != q.shape[2] else {}
    return functional.scaled_dot_product_attention(*heads_first, is_causal=True, **grouped).transpose(1, 2)


def document_mask(segment_ids_BT):
    """Returns FlexAttention's block mask: causal, and within a document."""
    B, T = segment_ids_BT.shape

    def visible(b, h, query, key):
        return (query >= key) & (segment_ids_BT[b, query] == segment_ids_BT[b, key])

    return torch.compile(create_block_mask)(visible, B, None, T, T, device=segment_ids_BT.device)


def varlen_function():
    """Returns a function of `(q, k, v, offsets, longest)` over concatenated documents, or None where there is none."""
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        return lambda q, k, v, o, n: flash_attn_varlen_func(q, k, v, o, o, n, n, causal=True)
    if not importlib.util.find_spec("torch.nn.attention.varlen"):
        return None
    from torch.nn.attention.varlen import varlen_attn

    # PyTorch 2.10 says causal with a flag, later versions with a window.
    parameters = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    return lambda q, k, v, o, n: varlen_attn(q, k, v, o, o, n, n, **causal)


def varlen_attention(varlen, offsets, longest, q, k, v):
    """Attention of each document by itself, in rows laid end to end."""
    flat = (x.flatten(0, 1) for x in (q, k, v))
    return varlen(*flat, offsets, longest).view(q.shape)


def milliseconds(functions, rounds: int = 7, round_milliseconds: float = 30) -> tuple[dict, dict]:
    """Returns `(times, failures)` as `jaxformer.devices.timing` does: medians of a call, by device events, in turns."""
    counts, failures = {}, {}
    for name, function in functions.items():
        try:
            for _ in range(3):
                function()
            counts[name] = max(1, round(round_milliseconds / max(_elapsed(function, 1), 1e-3)))
        except Exception as error:
            failures[name] = reason(error)
    turns = {name: [] for name in counts}
    for _ in range(rounds):
        for name, count in counts.items():
            turns[name].append(_elapsed(functions[name], count) / count)
    return {name: statistics.median(times) for name, times in turns.items()}, failures


def _elapsed(function, count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def reason(error: Exception) -> str:
    """Returns an exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"

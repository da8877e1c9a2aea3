"""Our methods inside vLLM's worker process (`worker_extension_cls`): receive weights, read back what is served.

Every method runs on every tensor-parallel rank, called by name through `collective_rpc`; arguments and results are
plain msgpack types. The weights stream into vLLM's layerwise reload bucket by bucket, so no second copy of the model
is held; the layers that the CPU build packs (and whose originals it frees) are packed again by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from raylign.cluster.pages import KeptPages
from raylign.rollout.adapters import AdapterUpdate
from raylign.rollout.broadcast import TransferGroup
from raylign.rollout.bucket import read_bucket
from raylign.rollout.interfaces import AdapterSpec, TensorSpec, TransferLink, WeightUpdateError
from raylign.rollout.weight_transaction import ServedModule, ServedPart, WeightTransaction
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

ALL = slice(None)
HEAD = "lm_head"


class WeightReceiver:
    """Mixed into vLLM's Worker; every name starts with `raylign_` so that none of its own is shadowed."""

    raylign_transaction: WeightTransaction | None = None
    raylign_reloading: nn.Module | None = None  # the layers of the update under way: the model, or the adapted ones
    raylign_adapters: AdapterUpdate | None = None  # the update under way, where it is of adapters alone
    raylign_transfer: TransferGroup | None = None  # joined, weights to be received
    raylign_read_whole = False  # once every column of every packed layer has been read back and was right
    raylign_pages: KeptPages | None = None

    def raylign_ping(self) -> None:
        """This rank answers."""

    def raylign_begin(
        self, tensors: list[list], tied: bool, columns: int, seed: int, adapters: Sequence[list] = ()
    ) -> None:
        """Announce an update. `tensors`: [name, shape, dtype, digest]; `adapters`: [weight, rank, scale] of those that
        alone will come, the rest being as it is.

        Raises WeightUpdateError when the served model ties its embeddings and the publisher does not, or the reverse.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        specs = [TensorSpec(name, tuple(shape), dtype, digest) for name, shape, dtype, digest in tensors]
        if _is_tied(model) != tied:
            raise WeightUpdateError(
                f"tied embeddings: {_is_tied(model)} in the engine's config.json, {tied} in the published model; "
                "start the engine from the folder the learner started from"
            )
        self._raylign_abandon(model)
        dtype, names = self.model_runner.model_config.dtype, {spec.name for spec in specs}  # type: ignore[attr-defined]
        modules = list(served_modules(model, dtype, names))
        columns = columns if self.raylign_read_whole else 0
        self.raylign_adapters = None
        if adapters:
            folder = self.model_runner.model_config.model  # type: ignore[attr-defined]
            update = AdapterUpdate(folder, [AdapterSpec(*adapter) for adapter in adapters])
            self.raylign_adapters = update
            modules = [m for m in modules if any(part.source in update.weights for part in m.parts)]
            needed = {part.source for module in modules for part in module.parts}
            specs = [spec for spec in specs if spec.name in needed]
        transaction = WeightTransaction(specs, modules, columns=columns, seed=seed)
        self.raylign_transaction = transaction
        layers = adapted_layers(model, self.raylign_adapters.weights, names) if self.raylign_adapters else []
        self.raylign_reloading = nn.ModuleList(layers) if layers else model
        initialize_layerwise_reload(self.raylign_reloading)

    def _raylign_open(self) -> WeightTransaction:
        if self.raylign_transaction is None:
            raise WeightUpdateError("no weight update was begun")
        return self.raylign_transaction

    def _raylign_abandon(self, model: nn.Module) -> None:
        """Close an update that failed half-way, so that its buffered tensors do not mix with the next one's."""
        if self.raylign_transfer is not None:
            self.raylign_transfer.abandon()
            self.raylign_transfer = None
        if self.raylign_transaction is None:
            return
        finalize_layerwise_reload(self.raylign_reloading, self.model_runner.model_config)  # type: ignore[attr-defined]
        self.raylign_transaction = self.raylign_reloading = None

    def raylign_load(self, where: str) -> int:
        """Load one bucket; returns the bytes read. What lies at `where` may go when this returns.

        Layers that are not complete yet keep the mapped pages of their tensors alive, no copy.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        tensors = read_bucket(where)
        if self.raylign_adapters is not None:
            self.raylign_adapters.receive((name, tensor.clone()) for name, tensor in tensors)
            return sum(tensor.nbytes for _, tensor in tensors)
        with torch.device(self.device):  # type: ignore[attr-defined]
            model.load_weights(self._raylign_open().observe(tensors))
        return sum(tensor.nbytes for _, tensor in tensors)

    def raylign_join(self, link: Sequence[Any]) -> None:
        """Meet the learner and the other engines; `link`: a TransferLink's fields. Ends by the link's deadline."""
        self._raylign_open()
        meeting = TransferLink(*link)
        rank = meeting.first_rank + self.rank  # type: ignore[attr-defined]
        self.raylign_transfer = TransferGroup(meeting, rank, self.device)  # type: ignore[attr-defined]
        self.raylign_transfer.meet()

    def raylign_receive(self) -> int:
        """Load what the learner broadcasts; returns the bytes. Ends by the link's deadline, whatever the others do."""
        model, transaction = self.model_runner.get_model(), self._raylign_open()  # type: ignore[attr-defined]
        transfer, self.raylign_transfer = self.raylign_transfer, None
        if transfer is None:
            raise WeightUpdateError("no transfer was joined")
        received = 0
        with closing(transfer.receive(transaction.announced)) as coming:
            for tensors in coming:
                with torch.device(self.device):  # type: ignore[attr-defined]
                    model.load_weights(transaction.observe(tensors))
                received += sum(tensor.nbytes for _, tensor in tensors)
        return received

    def raylign_finish(self) -> list[list]:
        """Put the weights in place, read them back: [[name, digest, where, wanted], ...], [mismatched], [missing]."""
        model, transaction = self.model_runner.get_model(), self._raylign_open()  # type: ignore[attr-defined]
        if self.raylign_adapters is not None:
            with torch.device(self.device):  # type: ignore[attr-defined]
                whole = self.raylign_adapters.whole_weights(transaction.announced, self.device)  # type: ignore[attr-defined]
                model.load_weights(transaction.observe(whole))
        finalize_layerwise_reload(self.raylign_reloading, self.model_runner.model_config)  # type: ignore[attr-defined]
        if self.raylign_adapters is None:
            self.raylign_repack_head(model)
        report = transaction.verify()
        self.raylign_transaction = self.raylign_reloading = self.raylign_adapters = None
        self.raylign_read_whole = not report.mismatched and not report.missing
        self.raylign_pages = self.raylign_pages or KeptPages()
        self.raylign_pages.after_step()
        return [
            [[d.name, d.digest, d.where, d.wanted] for d in report.digests],
            list(report.mismatched),
            list(report.missing),
        ]

    def raylign_repack_head(self, model: nn.Module) -> None:
        """Pack a tied lm_head again: the reload updates the embedding it shares, not its packed copy (CPU build)."""
        head = getattr(model, HEAD, None)
        if head is not None and _is_tied(model) and hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)


def _is_tied(model: Any) -> bool:
    return bool(model.config.tie_word_embeddings)


def served_modules(model: nn.Module, dtype: torch.dtype, published: Collection[str]) -> Iterator[ServedModule]:
    """Every tensor the model multiplies with, by the Hugging Face names it is published under."""
    packing: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    head = getattr(model, HEAD, None)
    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            yield from _linear(name, module, _names(name, packing, published), dtype)
        elif isinstance(module, VocabParallelEmbedding):
            if module is not head:
                yield from _vocabulary(name, name, module, read_packed=False)
        else:
            for suffix, tensor in module.named_parameters(recurse=False):
                yield _plain(_join(name, suffix), tensor)
    if head is not None:
        source = _embedding_name(model) if _is_tied(model) else HEAD
        yield from _vocabulary(HEAD, source, head, read_packed=True)


def adapted_layers(model: nn.Module, adapted: Collection[str], published: Collection[str]) -> list[nn.Module]:
    """The linear layers that hold one of the `adapted` weights, alone or fused with others."""
    packing: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, LinearBase)
        and any(f"{part}.weight" in adapted for part in _names(name, packing, published))
    ]


def _names(name: str, packing: dict[str, list[str]], published: Collection[str]) -> list[str]:
    """What a linear layer is made of: itself where it is published so, else what the engine fuses in it."""
    prefix, _, leaf = name.rpartition(".")
    if f"{name}.weight" in published:
        return [name]
    return [_join(prefix, part) for part in packing.get(leaf, [leaf])]


def _linear(name: str, module: LinearBase, names: list[str], dtype: torch.dtype) -> Iterator[ServedModule]:
    """The weight and the bias of a linear layer, each with its fused parts.

    A layer that is published fused is one part, whose rows lie in the engine as in the folder. Split over ranks they
    do not: WeightUpdateError.
    """
    sizes = list(module.output_partition_sizes)
    if len(names) == 1 and len(sizes) > 1 and module.tp_size == 1:
        sizes = [sum(sizes)]
    if len(names) != len(sizes):
        raise WeightUpdateError(f"{name} fuses {len(sizes)} parts of which {names} are known; it cannot be verified")
    columns = ALL
    if isinstance(module, RowParallelLinear):
        start = module.tp_rank * module.input_size_per_partition
        columns = slice(start, start + module.input_size_per_partition)
    rows = [_rows_of(module, index, size) for index, size in enumerate(sizes)]
    local = _consecutive(sizes)

    def parts(suffix: str) -> tuple[ServedPart, ...]:
        return tuple(
            ServedPart(f"{n}.{suffix}", f"{n}.{suffix}", r, columns, at)
            for n, r, at in zip(names, rows, local, strict=True)
        )

    shape = (sum(sizes), getattr(module, "input_size_per_partition", module.input_size))
    yield _weight(module, parts("weight"), shape, dtype)
    if getattr(module, "bias", None) is not None:
        bias = module.bias
        yield ServedModule(parts("bias"), tuple(bias.shape), dtype, False, partial(_read_plain, bias, dtype))


def _rows_of(module: LinearBase, index: int, size: int) -> slice:
    """Rows of part `index` of the published tensor that this rank serves (k and v heads may be replicated)."""
    if not isinstance(module, ColumnParallelLinear):
        return ALL
    rank = module.tp_rank
    if isinstance(module, QKVParallelLinear) and index > 0:
        rank //= module.num_kv_head_replicas
    return slice(rank * size, (rank + 1) * size)


def _vocabulary(name: str, source: str, module: VocabParallelEmbedding, *, read_packed: bool) -> Iterator[ServedModule]:
    """An embedding (read as it is) or an LM head (read as it multiplies). Padding rows are left out."""
    start, stop = module.shard_indices.org_vocab_start_index, module.shard_indices.org_vocab_end_index
    local = slice(0, stop - start)
    weight, bias = module.weight, getattr(module, "bias", None)
    shape, dtype = tuple(weight.shape), weight.dtype
    parts = (ServedPart(f"{name}.weight", f"{source}.weight", slice(start, stop), ALL, local),)
    if read_packed:
        yield _weight(module, parts, shape, dtype)
    else:
        yield ServedModule(parts, shape, dtype, False, partial(_read_plain, weight, dtype))
    if read_packed and bias is not None:
        bias_part = ServedPart(f"{name}.bias", f"{name}.bias", slice(start, stop), ALL, local)
        yield ServedModule((bias_part,), shape[:1], bias.dtype, False, partial(_read_plain, bias, bias.dtype))


def _weight(module: Any, parts: tuple[ServedPart, ...], shape: tuple[int, ...], dtype: torch.dtype) -> ServedModule:
    if hasattr(module, "cpu_linear"):
        return ServedModule(parts, shape, dtype, True, partial(_read_packed, module, shape[1], dtype))
    return ServedModule(parts, shape, dtype, False, partial(_read_plain, module.weight, dtype))


def _plain(name: str, tensor: Tensor) -> ServedModule:
    whole = slice(0, tensor.shape[0]) if tensor.ndim else ALL
    part = ServedPart(name, name, ALL, ALL, whole)
    return ServedModule((part,), tuple(tensor.shape), tensor.dtype, False, partial(_read_plain, tensor, tensor.dtype))


def _read_plain(tensor: Tensor, dtype: torch.dtype, columns: Tensor) -> Tensor:
    return tensor.detach().to(dtype)


@torch.no_grad()
def _read_packed(module: Any, width: int, dtype: torch.dtype, columns: Tensor) -> Tensor:
    """Columns of a packed weight: one-hot inputs give them exactly (one product and zeros; no rounding). [rows, C]"""
    one_hot = torch.zeros(len(columns), width, dtype=dtype)
    one_hot[torch.arange(len(columns)), columns] = 1
    return module.quant_method.apply(module, one_hot, None).t()


def _embedding_name(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, VocabParallelEmbedding) and not name.endswith(HEAD):
            return name
    raise WeightUpdateError("the model ties its lm_head to an embedding that was not found")


def _consecutive(sizes: Iterable[int]) -> list[slice]:
    start, slices = 0, []
    for size in sizes:
        slices.append(slice(start, start + size))
        start += size
    return slices


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

"""A model's norms, products and other pieces in faster forms, for the length of a pass.

Modules get a forward function of their own for a pass and lose it again; no class is changed, and
outside a pass the model is the library's. Results differ in the last bits at most. Knows no family:
a piece is taken by what it computes, not by its name.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from trimtok_cli.device import out_of_memory
from trimtok_cli.models.joined import join
from trimtok_cli.models.onednn import product_of

log = logging.getLogger("trimtok")

Forward = Callable[..., Any]
ROTARY = "apply_rotary_pos_emb"


class Form(NamedTuple):
    """What stands under a name for the length of a pass.

    names: a module's attributes, or the globals of one of the library's files. before: what stands
    there outside a pass; None where nothing does.
    """

    names: dict[str, Any]
    name: str
    form: Forward
    before: Forward | None = None


def faster_forms(modules: Iterable[nn.Module], device: torch.device) -> list[Form]:
    """The pieces of these modules that have a faster form on a device.

    On CUDA a norm is one kernel in place of eight, a rotation one in place of ten, what stands
    between the products of a gated MLP one in place of two, and the products of one input are one
    (`joined.py`). On an x86 CPU oneDNN multiplies float32 (`onednn.py`).
    """
    found: list[Form] = []
    modules = [module for module in modules if "forward" not in module.__dict__]
    fused = device.type == "cuda" and has_triton(device)
    owners = Counter(weight for module in modules for weight in module.parameters(recurse=False))
    for module in modules:  # one with a forward of its own has a hook, which is not ours to replace
        form = None
        if device.type == "cuda":
            form = fused_norm(module, fused) or (fused_gate(module, owners) if fused else None)
            found += joined_products(module, owners)
        elif device.type == "cpu" and type(module) is nn.Linear:
            form = product_of(module, relaid=owners[module.weight] == 1)
        if form is not None:
            found.append(Form(module.__dict__, "forward", form))
    if fused:
        found += fused_rotations(modules, device)
    return found


@contextmanager
def replaced(forms: list[Form]) -> Iterator[None]:
    """A block in which these forms stand for the library's own.

    A second block in another thread that ends first takes the forms away from this one too, which
    costs time and no result.
    """
    for each in forms:
        each.names[each.name] = each.form
    try:
        yield
    finally:
        for each in forms:
            if each.before is None:
                each.names.pop(each.name, None)
            else:
                each.names[each.name] = each.before


def fused_norm(module: nn.Module, with_triton: bool = False) -> Forward | None:
    """The module as one call of an RMS norm; None if it computes anything else.

    The scale is the weight, or one more than the weight (Gemma).
    """
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    probe = torch.linspace(-1, 2, len(weight), device=weight.device).to(weight.dtype)[None]
    with torch.inference_mode():
        wanted = module(probe).float()
    for scale in (weight, 1 + weight.detach()):
        form = scaled_norm(scale, eps, with_triton)
        if torch.allclose(form(probe).float(), wanted, rtol=2 * torch.finfo(weight.dtype).eps):
            return form
    return None


def scaled_norm(scale: Tensor, eps: float, with_triton: bool = False) -> Forward:
    """The RMS norm of rows as wide as the scale: torch's own, or a kernel that is quicker where
    the rows are few.
    """
    size = tuple(scale.shape)

    def forward(hidden: Tensor) -> Tensor:
        return rms_norm(hidden, size, scale, eps)

    if not with_triton:
        return forward
    from trimtok_cli.models import fused_triton

    def launched(hidden: Tensor) -> Tensor:
        usual = hidden.dtype == scale.dtype and hidden.is_contiguous()
        if usual and scale.dtype in fused_triton.TYPES:
            return fused_triton.norm(hidden, scale, eps)
        return forward(hidden)

    return launched


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels can be compiled and run here; if not, the library's own run."""
    try:
        from trimtok_cli.models.fused_triton import gated

        ones = torch.ones(8, device=device)
        return torch.allclose(gated(ones, ones), nn.functional.silu(ones))
    except Exception as error:
        if out_of_memory(error):
            raise
        log.debug("the decoder's pieces run as the library has them, without Triton: %s", error)
        return False


def joined_products(module: nn.Module, owners: Mapping[Tensor, int]) -> list[Form]:
    """An attention module's query, key and value as one product; [] if it has no such layers.

    owners: the number of modules that have each weight.
    """
    names = ("q_proj", "k_proj", "v_proj")
    # A norm of the queries alone would have to make them a tensor of their own.
    if hasattr(module, "q_norm") or not all(hasattr(module, name) for name in names):
        return []
    layers = [getattr(module, name) for name in names]
    joined = join(layers, owners)
    if joined is None:
        return []
    forms = [joined.first, joined.other(1), joined.other(2)]
    return [
        Form(layer.__dict__, "forward", form) for layer, form in zip(layers, forms, strict=True)
    ]


def fused_activation(module: nn.Module) -> Forward | None:
    """An activation x sigmoid(1.702 x) as one kernel in place of three; None for any other."""
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return None
    from trimtok_cli.models import fused_triton

    probe = torch.linspace(-6, 6, 64)
    with torch.inference_mode():
        try:
            found = module(probe)
        except Exception as error:  # it takes something else
            if out_of_memory(error):
                raise
            return None
        if not isinstance(found, Tensor) or found.shape != probe.shape:
            return None
        if not torch.allclose(found, probe * torch.sigmoid(fused_triton.QUICK * probe)):
            return None

    def forward(hidden: Tensor) -> Tensor:
        usual = hidden.is_cuda and hidden.is_contiguous() and hidden.dtype in fused_triton.TYPES
        return fused_triton.quick_gelu(hidden) if usual else type(module).forward(module, hidden)

    return forward


def faster_tower(modules: Iterable[nn.Module], device: torch.device) -> list[Form]:
    """The pieces of a vision tower that have a faster form on a device: CLIP's activation."""
    if device.type != "cuda" or not has_triton(device):
        return []
    forms = [
        (module, fused_activation(module)) for module in modules if "forward" not in module.__dict__
    ]
    return [Form(module.__dict__, "forward", form) for module, form in forms if form is not None]


def fused_gate(module: nn.Module, owners: Mapping[Tensor, int]) -> Forward | None:
    """The module as two products with one kernel between them; None if it is no such MLP.

    owners: the number of modules that have each weight.
    """
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if any(not isinstance(getattr(module, name, None), nn.Module) for name in parts):
        return None
    from trimtok_cli.models import fused_triton

    gate, up, down, act = (getattr(module, name) for name in parts)

    weight = getattr(gate, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in fused_triton.TYPES:
        return None
    probe = torch.linspace(-4, 4, 64, device=weight.device).to(weight.dtype)
    # The class's own code between products that are known.
    known = SimpleNamespace(gate_proj=lambda rows: 2 * rows, up_proj=lambda rows: rows + 1)
    known.down_proj, known.act_fn = lambda rows: 4 * rows, act
    with torch.inference_mode():
        try:
            wanted = type(module).forward(known, probe)
        except (AttributeError, TypeError):  # it reads something else
            return None
        found = 4 * fused_triton.gated(2 * probe, probe + 1)
    bits = 2 * torch.finfo(weight.dtype).eps
    if not torch.allclose(found, wanted, rtol=bits, atol=1e-6):
        return None
    joined = join([gate, up], owners)

    def forward(hidden: Tensor) -> Tensor:
        opened, risen = (gate(hidden), up(hidden)) if joined is None else joined(hidden)
        if opened.dtype not in fused_triton.TYPES:
            return down(act(opened) * risen)
        return down(fused_triton.gated(opened, risen))

    return forward


def fused_rotations(modules: Iterable[nn.Module], device: torch.device) -> list[Form]:
    """The rotations of the files that these modules' classes come from, each as one kernel."""
    found = []
    names = {type(module).__module__: module for module in modules if hasattr(module, "k_proj")}
    for file, module in names.items():
        library = getattr(sys.modules[file], ROTARY, None)
        if library is None:
            continue
        form = fused_rotary(library)
        dtype = module.k_proj.weight.dtype
        generator = torch.Generator().manual_seed(0)
        given = [
            torch.randn(shape, generator=generator).to(device, dtype)
            for shape in ((2, 3, 5, 16), (2, 1, 5, 16), (2, 5, 16), (2, 5, 16))
        ]
        close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
        with torch.inference_mode():
            pairs = zip(form(*given), library(*given), strict=True)
        if all(torch.allclose(one, other, **close) for one, other in pairs):
            found.append(Form(vars(sys.modules[file]), ROTARY, form, library))
    return found


def fused_rotary(library: Forward) -> Forward:
    """The library's rotation as one kernel where it is the usual one; else as it is."""
    from trimtok_cli.models import fused_triton

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **rest: Any):
        given = (query, key, cos, sin)
        usual = (
            not more
            and not rest
            and query.is_cuda
            and query.dim() == 4
            and cos.dim() == 3
            and cos.shape == sin.shape
            and cos.stride() == sin.stride()
            and len({each.shape[-1] for each in given}) == 1
            and len({each.dtype for each in given}) == 1
            and query.dtype in fused_triton.TYPES
            and query.shape[-1] % 2 == 0
            and all(each.stride(-1) == 1 for each in given)
        )
        return fused_triton.rotary(*given) if usual else library(*given, *more, **rest)

    return rotate

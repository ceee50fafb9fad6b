"""The greedy searches in every form against the whole-matrix reference and the paper's loop;
distances by product; no waiting.
"""

import importlib.util
import logging
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.support.interpreter import interpreted
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.kernels import greedy, numerics
from trimtok_cli.pruners.kernels.alignment import alignment, near_text
from trimtok_cli.pruners.kernels.greedy_cpu import FEW, Rows
from trimtok_cli.pruners.kernels.reference import repmax_reference
from trimtok_cli.pruners.registry import PRUNERS
from trimtok_cli.tokens import Prompt, VisualTokens

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no package for this system"
)


def tokens(kind: str, count: int, width: int, seed: int) -> torch.Tensor:
    """iid; or a mean common to all, a smooth low-rank field and noise, the second time with
    newlines and copied patches.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    if kind == "iid":
        return normal(count, width)
    side = int(count**0.5) + 1
    places = torch.cartesian_prod(torch.linspace(0, 1, side), torch.linspace(0, 1, side))[:count]
    field = (
        torch.cos(8 * places @ normal(2, 24) + 6 * torch.rand(24, generator=g))
        @ normal(24, width)
        / 24**0.5
    )
    visual = 0.5 * normal(width) + field + normal(count, width)
    if kind == "duplicates":
        visual[side - 1 :: side] = normal(width)
        copies = torch.randint(count, (count // 5,), generator=g)
        visual[copies] = visual[copies.flip(0)]
    return visual


SIZES = [
    (1, 1, 8),
    (2, 1, 8),
    (3, 3, 5),
    (17, 17, 1),
    (40, 33, 24),
    (97, 12, 2),
    (460, 64, 768),
    (1100, 130, 96),
    (2304, 288, 64),
]


@pytest.mark.parametrize("kind", ["iid", "image", "duplicates"])
@pytest.mark.parametrize(("count", "keep", "width"), SIZES)
def test_rows_as_they_are_read_give_the_same_tokens_as_the_whole_matrix(kind, count, keep, width):
    for seed in range(3 if count < 1000 else 1):
        visual = tokens(kind, count, width, seed)[None]
        found = greedy.repmax(visual, keep)
        assert found.tolist() == greedy.repmax_gram(visual, keep).tolist()
        if (
            kind != "duplicates" and width > 5 and count > 2
        ):  # two tokens are as far from each other: the rule for ties is ours
            assert found[0].tolist() == repmax_reference(visual[0].double(), keep)
        assert greedy.max_min(visual, keep).tolist() == greedy.max_min_gram(visual, keep).tolist()


@pytest.mark.parametrize("count", [60, FEW + 60])
def test_duplicates_in_a_row_go_lowest_first(count):
    visual = tokens("image", count // 3, 40, 0).repeat_interleave(3, 0)[None]
    zero = visual.clone()
    zero[:, 30:40] = 0
    for each in (visual, zero, torch.ones(1, count, 7), torch.zeros(1, count, 7)):
        for search, reference in (
            (greedy.repmax, greedy.repmax_gram),
            (greedy.max_min, greedy.max_min_gram),
        ):
            assert search(each, 45).tolist() == reference(each, 45).tolist()


def test_only_rows_that_are_read_are_computed(monkeypatch):
    computed, compute = [], Rows.compute
    monkeypatch.setattr(
        Rows,
        "compute",
        lambda self, places: computed.extend(places.tolist()) or compute(self, places),
    )
    visual = tokens("image", 2304, 64, 0)[None]
    for search, most in ((greedy.repmax, 500), (greedy.max_min, 900)):
        computed.clear()
        search(visual, 288)
        assert 288 <= len(computed) == len(set(computed)) < most


def hard(kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Visual and text where a distance from a product loses most: far from 0, nearly equal, equal,
    or of uneven length.
    """
    g = torch.Generator().manual_seed(seed)
    visual, text = (
        tokens("duplicates" if kind == "duplicates" else "image", 300, 64, seed),
        0.5 * torch.randn(9, 64, generator=g),
    )
    if kind == "far":
        common = 300 * torch.randn(64, generator=g)
        return visual + common, text + common
    if kind == "near":
        text[:6] = visual[torch.arange(6) * 40] + 1e-4 * torch.randn(6, 64, generator=g)
        text[6] = visual[100]
    if kind == "uneven":
        visual[::3] *= 100
    if kind == "flat":
        return visual * 1e-3, text + 20
    return visual, text


@pytest.mark.parametrize("align", ["l2", "sq_l2", "cosine"])
@pytest.mark.parametrize("kind", ["plain", "far", "near", "uneven", "flat", "duplicates"])
def test_distances_by_product_leave_the_same_tokens(kind, align, monkeypatch):
    pairs = [hard(kind, seed) for seed in range(6)]
    visual, text = (torch.stack(each) for each in zip(*pairs, strict=True))
    mask = torch.arange(9) < torch.tensor([9, 7, 3, 9, 1, 0])[:, None]
    for count in (1, 64, 240, 299):
        for given in (None, mask):
            score = alignment(visual, text, align, given)
            want = (
                score.sort(dim=1, descending=True, stable=True)
                .indices[:, :count]
                .sort(dim=1)
                .values
            )
            assert near_text(visual, text, count, align, given).tolist() == want.tolist()
            with monkeypatch.context() as patch:
                patch.setattr(numerics, "LIMIT", 4 * 300 * 64 * 2)  # in parts of two
                assert near_text(visual, text, count, align, given).tolist() == want.tolist()


def test_no_search_by_the_matrix_reads_a_value_back():
    """On fake CUDA tensors nothing can be read back: a hidden .item(), .nonzero() or mask as an
    index raises.
    """
    with FakeTensorMode():
        for dtype in (torch.bfloat16, torch.float32):
            visual, text = (
                torch.empty(3, 90, 8, device="cuda", dtype=dtype),
                torch.empty(3, 4, 8, device="cuda", dtype=dtype),
            )
            mask = torch.ones(3, 4, device="cuda", dtype=torch.bool)
            with pytest.raises(DataDependentOutputException):
                visual.sum().item()
            for diversity in ("cosine", "l2"):
                out = greedy.repmax(visual, 11, diversity)
                assert out.shape == (3, 11) and out.is_cuda
            assert greedy.max_min(visual, 11).shape == (3, 11)
            assert near_text(visual, text, 70, text_mask=mask).shape == (3, 70)


@pytest.fixture(autouse=True)
def _no_kernels(request, monkeypatch):
    """Fake tensors cannot enter a kernel; tests of kernels say so themselves."""
    monkeypatch.setattr(greedy, "_without_kernels", "gpu" not in request.keywords)


@pytest.mark.parametrize("method", ["trimtokenator", "divprune", "divprune-star", "cdpruner"])
def test_from_the_batch_to_the_reduced_prompt_nothing_waits_for_the_device(method):
    """On meta tensors too nothing can be read back. What the host knows (whose token is whose) lies
    on the host.
    """
    with torch.device("meta"):
        hidden = torch.empty(60, 16)
        prompt = Prompt(
            hidden, torch.arange(60), torch.arange(5, 55), torch.arange(50), torch.arange(56, 59)
        )
    dense = VisualTokens(hidden[5:55], torch.arange(2).repeat_interleave(25), torch.zeros(50, 4))
    kind = PRUNERS[method]
    pruner = kind(Budget(tokens=7), text="llm") if method == "cdpruner" else kind(Budget(tokens=7))
    words_alone = Prompt(
        hidden, prompt.positions, prompt.visual, prompt.alive, prompt.instruction[:0]
    )
    stages = [Stage(0, hidden, each, dense) for each in (prompt, words_alone)]
    selections = pruner.select_many(stages)
    assert len(selections) == 2
    for selection in selections:
        assert selection.kept.shape == (14,) and selection.kept.is_meta
        short = prompt.reduced(selection, num_dense=50, renumber=True)
        assert len(short) == 24 and len(short.visual) == 14 and len(short.instruction) == 3


def test_images_of_the_prompt_are_those_of_any_stage():
    for owner in ([0, 0, 0, 1, 1], [2], [0, 1, 0, 1, 1], [1, 1, 0]):
        places, index = torch.arange(len(owner)), torch.tensor(owner)
        prompt = Prompt(torch.zeros(len(owner), 2), places, places, places, places[:0])
        dense = VisualTokens(prompt.embeds, index, torch.zeros(len(owner), 4))
        found = [rows.tolist() for rows in Stage(0, prompt.embeds, prompt, dense).images()]
        assert sorted(found) == sorted(
            rows.tolist() for rows in Stage(1, prompt.embeds, prompt, dense).images()
        )
        assert sorted(place for rows in found for place in rows) == places.tolist()


def test_a_kernel_that_cannot_run_is_said_once_and_done_without(monkeypatch, caplog):
    monkeypatch.setattr(greedy, "_without_kernels", False)
    monkeypatch.setitem(
        sys.modules, "trimtok_cli.pruners.kernels.greedy_triton", None
    )  # as where Triton is missing
    monkeypatch.delattr("trimtok_cli.pruners.kernels.greedy_triton", raising=False)
    matrix = SimpleNamespace(is_cuda=True, shape=(1, 5, 5))
    with caplog.at_level(logging.WARNING, "trimtok"):
        assert (
            greedy._launched("least_sum", matrix) is None
            and greedy._launched("farthest", matrix) is None
        )
    assert len(caplog.records) == 1
    assert "pip install triton" in caplog.text and "four launches" in caplog.text


@pytest.mark.parametrize(
    "error, has_header, said",
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), True, "install gcc"),
        (subprocess.CalledProcessError(1, ["gcc"]), False, "needs Python.h"),
        (ValueError("unknown card\nline 2"), True, "ValueError: unknown card"),
    ],
)
def test_what_triton_lacks_is_named(error, has_header, said, monkeypatch, caplog, tmp_path):
    if has_header:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(greedy.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(greedy, "_without_kernels", False)

    def least_sum(*_):
        raise error

    stand_in = SimpleNamespace(least_sum=least_sum)
    monkeypatch.setitem(sys.modules, "trimtok_cli.pruners.kernels.greedy_triton", stand_in)
    monkeypatch.setattr("trimtok_cli.pruners.kernels.greedy_triton", stand_in, raising=False)
    matrix = SimpleNamespace(is_cuda=True, shape=(1, 5, 5))
    with caplog.at_level(logging.WARNING, "trimtok"):
        assert greedy._launched("least_sum", matrix) is None
    assert said in caplog.text and "line 2" not in caplog.text


@needs_triton
def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    from trimtok_cli.pruners.kernels import greedy_triton

    entered, launched_in = [], []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **options: launched_in.extend(entered)

    @contextmanager
    def device_of(tensor):
        entered.append(tensor)
        yield
        entered.remove(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(greedy_triton, "_least_sum_kernel", Kernel())
    matrix = torch.zeros(2, 5, 5)
    greedy_triton.least_sum(matrix, torch.zeros(2, dtype=torch.long), 3)
    assert len(launched_in) == 1 and launched_in[0] is matrix


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["allocator", "library"])
def test_out_of_memory_in_the_product_is_no_reason_for_another_product(error, monkeypatch):
    """The other product takes more memory and rounds otherwise."""

    def bmm(*_, **options):
        raise error

    monkeypatch.setattr(torch, "bmm", bmm)
    with FakeTensorMode(), pytest.raises(RuntimeError) as raised:
        numerics.cosines(torch.empty(2, 90, 8, device="cuda", dtype=torch.bfloat16))
    assert raised.value is error


def test_a_device_without_the_product_of_16_bits_takes_float32(monkeypatch):
    def bmm(*_, **options):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(torch, "bmm", bmm)
    with FakeTensorMode():
        cosine, _ = numerics.cosines(torch.empty(2, 90, 8, device="cuda", dtype=torch.bfloat16))
    assert cosine.dtype == torch.float32 and cosine.shape == (2, 90, 90)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["allocator", "library"])
def test_out_of_memory_in_a_kernel_does_not_switch_kernels_off(error, monkeypatch):
    def least_sum(*_):
        raise error

    stand_in = SimpleNamespace(least_sum=least_sum)
    monkeypatch.setitem(sys.modules, "trimtok_cli.pruners.kernels.greedy_triton", stand_in)
    monkeypatch.setattr("trimtok_cli.pruners.kernels.greedy_triton", stand_in, raising=False)
    monkeypatch.setattr(greedy, "_without_kernels", False)
    with pytest.raises(RuntimeError) as raised:
        greedy._launched("least_sum", SimpleNamespace(is_cuda=True, shape=(1, 5, 5)))
    assert raised.value is error and not greedy._without_kernels


def test_full_float32_whatever_the_process_allows_and_then_as_before():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with numerics.full_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_triton
def test_kernels_in_the_interpreter_take_the_reference_s_tokens():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    code = "from tests.support.kernels import check_kernels; check_kernels('cpu')"
    done = interpreted(code)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cards_that_are_not_here(capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trimtok_cli.pruners.kernels import greedy_triton

    given = {"matrix": "*fp32", "first": "*i64", "order": "*i64", "count": "i32", "keep": "i32"}
    for kernel, more in (
        (greedy_triton._least_sum_kernel, {}),
        (greedy_triton._farthest_kernel, {"tie": "fp32"}),
    ):
        source = ASTSource(
            kernel, {**given, **more, "BLOCK": "constexpr"}, constexprs={"BLOCK": 4096}
        )
        options = {"num_warps": 16, "enable_fp_fusion": False}
        assert triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options=options
        ).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_kernels_take_the_reference_s_tokens_and_nothing_waits():
    from tests.support.kernels import check_kernels

    check_kernels("cuda")
    visual, text = (
        tokens("image", 576, 1024, 0).cuda().bfloat16()[None],
        tokens("iid", 12, 1024, 1).cuda().bfloat16()[None],
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        near = near_text(visual, text, 460)
        found = greedy.repmax(visual, 64), greedy.max_min(visual, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not greedy._without_kernels
    assert near.tolist() == near_text(visual.cpu(), text.cpu(), 460).tolist()
    for one, search in zip(found, (greedy.repmax, greedy.max_min), strict=True):
        assert len(set(one[0].tolist()) & set(search(visual.cpu(), 64)[0].tolist())) >= 63

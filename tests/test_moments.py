"""Second moments: packing, streaming, and the sums of a concept against loops over hand-made pairings."""

import pytest
import torch

from mace.method.moments import (
    ConceptMoments,
    Gram,
    concept_moments,
    pack,
    packed_trace,
    packed_width,
    unpack,
    working_device,
)
from mace.method.tokens import Pairing
from tests.oracle import outer_sum, paired_tokens

CPU = torch.device("cpu")
WIDTH = 5
WINDOW = 7

# Prompts of one concept: phrase at the start, in the middle, longer than its mapping, nothing paired at all.
PAIRINGS = [
    Pairing((0, 2, 3, 4, 5, 6), (0, 2, 3, 4, 5, 6), (1,)),
    Pairing((0, 1, 4, 5, 6), (0, 1, 3, 4, 5), (2, 3)),
    Pairing((0, 1, 2, 4, 5), (0, 1, 2, 5, 6), (3,)),
    Pairing((), (), (0, 1, 2, 3, 4, 5, 6)),
]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompts(count=4, dtype=torch.float32):
    return normal(count, WINDOW, WIDTH, seed=1, dtype=dtype), normal(count, WINDOW, WIDTH, seed=2, dtype=dtype)


def check(found: ConceptMoments, targets, mappings, pairings, rtol=1e-12):
    """Compare with sums over single elements of single tokens."""
    f, g = paired_tokens(targets, mappings, [(p.target, p.mapping) for p in pairings])
    tokens = list(targets.reshape(-1, WIDTH))
    close(found.cross, outer_sum(g, f, WIDTH), rtol)
    close(unpack(found.paired), outer_sum(f, f, WIDTH), rtol)
    close(unpack(found.total), outer_sum(tokens, tokens, WIDTH), rtol)
    assert (found.pairs, found.prompts) == (len(f), len(pairings))


def close(found, expected, rtol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("width", [1, 2, 3, 24, 77])
def test_pack_and_back(width):
    matrix = normal(width, width, dtype=torch.float64)
    symmetric = matrix + matrix.T
    packed = pack(symmetric)
    assert packed.shape == (width * (width + 1) // 2,)
    assert packed_width(packed) == width
    assert torch.equal(unpack(packed), symmetric)
    assert torch.equal(pack(unpack(packed)), packed)


def test_pack_keeps_sums():
    """Packed moments may be added and scaled without unpacking them."""
    a, b = (normal(4, 4, seed=seed, dtype=torch.float64) for seed in (1, 2))
    a, b = a + a.T, b + b.T
    close(unpack(pack(a) + 0.3 * pack(b)), a + 0.3 * b)


@pytest.mark.parametrize("packed", [torch.zeros(2), torch.zeros(4), torch.zeros(299), torch.zeros(3, 1)])
def test_a_length_that_no_width_gives(packed):
    with pytest.raises(ValueError, match="packed symmetric matrix"):
        packed_width(packed)
    with pytest.raises(ValueError, match="packed symmetric matrix"):
        unpack(packed)


def test_packed_width_of_large_matrices():
    for width in (768, 1024, 2048, 4096):
        assert packed_width(torch.empty(width * (width + 1) // 2, device="meta")) == width


def test_working_device_has_float64():
    assert working_device(torch.device("mps")) == CPU
    assert working_device(CPU) == CPU


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gram(dtype):
    embeddings = normal(3, WINDOW, WIDTH, dtype=dtype)
    gram = Gram(WIDTH, CPU)
    gram.add(embeddings)
    tokens = list(embeddings.reshape(-1, WIDTH))
    assert gram.matrix.dtype == torch.float64
    close(gram.matrix, outer_sum(tokens, tokens, WIDTH))


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [3, 0, 9]])
def test_gram_streams(sizes):
    embeddings = normal(12, WINDOW, WIDTH)
    whole, streamed = Gram(WIDTH, CPU), Gram(WIDTH, CPU)
    whole.add(embeddings)
    for part in embeddings.split(sizes):
        streamed.add(part)
    close(streamed.matrix, whole.matrix)


@pytest.mark.parametrize("width", [95, 96, 97, 300])
def test_wide_sums_are_whole_though_summed_in_blocks(width):
    embeddings = torch.randn(2, WINDOW, width, generator=torch.Generator().manual_seed(1))
    gram = Gram(width, CPU)
    gram.add(embeddings)
    tokens = embeddings.double().flatten(0, 1)
    expected = torch.einsum("ni,nj->ij", tokens, tokens)
    torch.testing.assert_close(gram.matrix, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(unpack(gram.packed), gram.matrix)
    found = concept_moments([(embeddings, embeddings, PAIRINGS[:2])], width, CPU)
    torch.testing.assert_close(unpack(found.total), expected, rtol=1e-12, atol=1e-12)
    chosen = torch.cat([rows[list(p.target)] for rows, p in zip(embeddings.double(), PAIRINGS[:2], strict=True)])
    torch.testing.assert_close(unpack(found.paired), torch.einsum("ni,nj->ij", chosen, chosen), rtol=1e-12, atol=1e-12)


def test_gram_of_one_token():
    gram = Gram(2, CPU)
    gram.add(torch.tensor([1.0, 3.0]))
    assert gram.matrix.tolist() == [[1.0, 3.0], [3.0, 9.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_concept(dtype):
    targets, mappings = prompts(dtype=dtype)
    found = concept_moments([(targets, mappings, PAIRINGS)], WIDTH, CPU)
    check(found, targets, mappings, PAIRINGS)


def test_half_precision_is_not_summed_in_half_precision():
    """In float16 the sum of 4096 ones, each squared, stops at 2048."""
    ones = torch.ones(512, 8, 1, dtype=torch.float16)
    pairing = Pairing(tuple(range(8)), tuple(range(8)), ())
    found = concept_moments([(ones, ones, [pairing] * 512)], 1, CPU)
    assert found.cross.item() == found.paired.item() == found.total.item() == 4096


@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [3, 1], [1, 3]])
def test_concept_streams(sizes):
    targets, mappings = prompts()
    batches, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        batches.append((targets[part], mappings[part], PAIRINGS[part]))
        start += size
    check(concept_moments(iter(batches), WIDTH, CPU), targets, mappings, PAIRINGS)


def test_repeated_positions():
    """A position paired twice counts twice in A and G, and once in S."""
    targets, mappings = prompts(2)
    pairings = [Pairing((1, 1, 3, 3, 3), (2, 4, 0, 0, 6), (2,)), Pairing((0, 6), (6, 6), ())]
    check(concept_moments([(targets, mappings, pairings)], WIDTH, CPU), targets, mappings, pairings)


def test_windows_of_different_length():
    """The mapping prompts may be encoded to another number of positions than the target prompts."""
    targets, mappings = normal(2, WINDOW, WIDTH, seed=3), normal(2, WINDOW + 3, WIDTH, seed=4)
    pairings = [Pairing((0, 6), (0, 9), (1,)), Pairing((2, 3), (8, 1), (1,))]
    check(concept_moments([(targets, mappings, pairings)], WIDTH, CPU), targets, mappings, pairings)


def test_nothing_paired_in_a_whole_batch():
    targets, mappings = prompts(1)
    found = concept_moments([(targets, mappings, PAIRINGS[3:])], WIDTH, CPU)
    check(found, targets, mappings, PAIRINGS[3:])
    assert found.pairs == 0 and not found.cross.any()


def test_equal_prompts_give_equal_moments():
    targets, _ = prompts()
    pairings = [Pairing(p.target, p.target, p.phrase) for p in PAIRINGS]
    found = concept_moments([(targets, targets, pairings)], WIDTH, CPU)
    close(found.cross, unpack(found.paired))


@pytest.mark.parametrize("side", [0, 1])
def test_another_width(side):
    batch = [*prompts(), PAIRINGS]
    batch[side] = batch[side][..., :-1]
    with pytest.raises(ValueError, match="4 wide.* 5"):
        concept_moments([tuple(batch)], WIDTH, CPU)
    with pytest.raises(ValueError, match="4 wide.* 5"):
        Gram(WIDTH, CPU).add(batch[side])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side, position", [(0, 2), (0, 1), (1, 2)])
def test_values_that_are_not_finite(value, side, position):
    """In a paired token of either prompt, and in the phrase's own token, which only S holds."""
    batch = [*prompts(), PAIRINGS]
    batch[side][0, position, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        concept_moments([tuple(batch)], WIDTH, CPU)


def test_gram_refuses_values_that_are_not_finite():
    embeddings = normal(2, WINDOW, WIDTH)
    embeddings[1, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        Gram(WIDTH, CPU).add(embeddings)


def test_infinity_against_zero():
    """inf * 0 in the products must not pass for a finite sum."""
    targets, mappings = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    mappings[0, 1, 1] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        concept_moments([(targets, mappings, [Pairing((1,), (1,), (0,))])], 2, CPU)


def test_result_is_packed_float64_on_the_cpu_and_of_one_size():
    sizes = set()
    for count in (1, 4, 40):
        pairings = [PAIRINGS[i % 3] for i in range(count)]
        found = concept_moments([(*prompts(count), pairings)], WIDTH, CPU)
        packed = (WIDTH * (WIDTH + 1) // 2,)
        assert (found.cross.shape, found.paired.shape, found.total.shape) == ((WIDTH, WIDTH), packed, packed)
        for moment in (found.cross, found.paired, found.total):
            assert moment.dtype == torch.float64 and moment.device == CPU
            # The three share one block, which holds nothing else: no prompt's tokens stay behind.
            assert moment.untyped_storage().nbytes() == found.bytes
        sizes.add(found.bytes)
    assert sizes == {8 * (WIDTH * WIDTH + WIDTH * (WIDTH + 1))}


def test_inputs_stay_as_they_are():
    targets, mappings = prompts(dtype=torch.float64)
    before = targets.clone(), mappings.clone()
    concept_moments([(targets, mappings, PAIRINGS)], WIDTH, CPU)
    assert torch.equal(targets, before[0]) and torch.equal(mappings, before[1])


def test_the_trace_of_a_packed_matrix():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix + matrix.mT
    assert packed_trace(pack(matrix)) == pytest.approx(float(matrix.trace()), rel=1e-12)

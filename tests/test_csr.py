"""Counts in memory, against scipy."""

import numpy as np
import pytest
import torch
from scipy import sparse

from scanpy_scvipyro import csr


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    counts = sparse.csr_array(rng.poisson(0.3, (50, 9)).astype(np.float32))
    return counts[np.ravel(counts.sum(axis=1)) > 0]


@pytest.mark.parametrize("block", [1, 10, 1 << 20])
def test_blocks_are_all_cells_in_order(matrix, block, monkeypatch):
    monkeypatch.setattr(csr, "_BLOCK", block)
    blocks = list(csr.CSR.of(matrix).blocks())
    assert [rows.start for rows, _ in blocks] == [0, *[rows.stop for rows, _ in blocks][:-1]]
    assert len(blocks) == {1: matrix.shape[0], 1 << 20: 1}.get(block, len(blocks))
    joined = sparse.vstack([part.to_scipy() for _, part in blocks])
    np.testing.assert_array_equal(joined.toarray(), matrix.toarray())
    assert np.shares_memory(blocks[0][1].values.numpy(), matrix.data)


@pytest.mark.parametrize("block", [1, 10, 1 << 20])
def test_totals_are_sums_over_the_cells_of_each_group(matrix, block, monkeypatch):
    monkeypatch.setattr(csr, "_BLOCK", block)
    group = torch.arange(matrix.shape[0]) % 3
    totals = csr.CSR.of(matrix).totals(group)
    dense = matrix.toarray().astype(np.float64)
    for name, values in {
        "frequency": dense / dense.sum(axis=1, keepdims=True),
        "counts": dense,
        "n_detected": dense > 0,
    }.items():
        expected = np.stack([values[group == i].sum(axis=0) for i in range(3)])
        np.testing.assert_allclose(getattr(totals, name), expected, rtol=1e-12)


@pytest.mark.parametrize("is_too_large", [True, False])
def test_cells_are_read_in_any_order_and_repeatedly(matrix, is_too_large, monkeypatch):
    if is_too_large:
        monkeypatch.setattr(csr, "_MAX_VIEW", 10)
    rows = torch.tensor([7, 3, 3, 40, 0])
    np.testing.assert_array_equal(csr.CSR.of(matrix).read(rows).to_scipy().toarray(), matrix.toarray()[rows])

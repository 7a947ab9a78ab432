from __future__ import annotations

import torch

from llm4msr.models.batch import Batch, FieldLayout
from llm4msr.models.embedding import FeatureEmbedding


def _batch(categorical: list[list[int]], multi: list[list[int]], numeric: list[list[float]]) -> Batch:
    rows = len(categorical)
    return Batch(
        categorical=torch.tensor(categorical, dtype=torch.int64).view(rows, -1),
        multi=torch.tensor(multi, dtype=torch.int64).view(rows, -1),
        numeric=torch.tensor(numeric, dtype=torch.float32).view(rows, -1),
        offsets=(0, rows),
        label=torch.zeros(rows),
        rows=torch.arange(rows),
    )


def test_fields_stand_side_by_side_and_an_id_never_aliases_another_fields() -> None:
    embedding = FeatureEmbedding(FieldLayout(categorical=(3, 2)), 1)
    with torch.no_grad():
        embedding.table.weight.copy_(torch.arange(5.0)[:, None])
    out = embedding(_batch([[0, 0], [2, 1]], [[], []], [[], []]))
    assert out.tolist() == [[0.0, 3.0], [2.0, 4.0]]


def test_multi_valued_fields_are_the_mean_of_their_values_and_zero_for_none() -> None:
    embedding = FeatureEmbedding(FieldLayout(categorical=(1,), multi=((4, 3),)), 1)
    with torch.no_grad():
        embedding.table.weight.copy_(torch.tensor([[9.0], [0.0], [1.0], [2.0], [4.0]]))
    out = embedding(_batch([[0], [0], [0]], [[1, 3, -1], [-1, -1, -1], [0, -1, -1]], [[], [], []]))
    assert out[:, 1].tolist() == [2.5, 0.0, 0.0]


def test_numbers_scale_a_vector_and_missing_ones_have_their_own() -> None:
    embedding = FeatureEmbedding(FieldLayout(numeric=1), 2)
    assert embedding.numeric is not None
    with torch.no_grad():
        embedding.numeric.copy_(torch.tensor([[[1.0, 2.0]], [[0.5, 0.5]], [[-7.0, 7.0]]]))
    out = embedding(_batch([[], []], [[], []], [[3.0], [float("nan")]]))
    assert out.tolist() == [[3.5, 6.5], [-7.0, 7.0]]


def test_a_missing_number_breaks_no_gradient() -> None:
    embedding = FeatureEmbedding(FieldLayout(numeric=1), 2)
    embedding(_batch([[], []], [[], []], [[1.0], [float("nan")]])).sum().backward()
    assert embedding.numeric is not None
    assert embedding.numeric.grad is not None
    assert bool(torch.isfinite(embedding.numeric.grad).all())


def test_sparse_and_dense_tables_give_the_same_values_and_gradients() -> None:
    layout = FieldLayout(categorical=(5,), multi=((4, 2),))
    dense, sparse = FeatureEmbedding(layout, 3), FeatureEmbedding(layout, 3)
    sparse.sparse_gradient = True
    sparse.load_state_dict(dense.state_dict())
    batch = _batch([[1], [1], [4]], [[0, 1], [3, -1], [-1, -1]], [[], [], []])
    assert torch.equal(dense(batch), sparse(batch))
    for embedding in (dense, sparse):
        embedding(batch).square().sum().backward()
    assert dense.table.weight.grad is not None
    assert sparse.table.weight.grad is not None
    torch.testing.assert_close(sparse.table.weight.grad.to_dense(), dense.table.weight.grad)


def test_rows_can_start_from_vectors() -> None:
    embedding = FeatureEmbedding(FieldLayout(categorical=(3, 4)), 2)
    before = embedding.table.weight.detach().clone()
    embedding.start_from(1, torch.tensor([1, 3]), torch.tensor([[1.0, -1.0, 9.0], [-1.0, 1.0, 9.0]]))
    after = embedding.table.weight.detach()
    spread = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).std()
    torch.testing.assert_close(after[[4, 6]], torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) * 0.01 / spread)
    others = [0, 1, 2, 3, 5]
    assert torch.equal(after[others], before[others])


def test_a_single_vector_of_one_number_starts_a_row() -> None:
    embedding = FeatureEmbedding(FieldLayout(categorical=(3,)), 1)
    embedding.start_from(0, torch.tensor([1]), torch.tensor([[2.0]]))
    assert torch.isfinite(embedding.table.weight).all()

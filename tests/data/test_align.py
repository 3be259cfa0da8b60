import pytest

from evomoe.data.labels import align

M, N = 9, 8  # placeholders


@pytest.mark.parametrize(
    ("own", "ids", "origins"),
    [
        ([1, 2], [1, 2], [0, 1]),
        ([1, M, 2], [1, M, M, M, 2], [0, None, None, None, 2]),
        ([1, M, 2], [1, 5, M, 2, M, 6, 2], [0, None, None, None, None, None, 2]),
        ([M, 1, 2, M, 3], [M, M, 1, 2, M, 3], [None, None, 1, 2, None, 4]),
        ([M, M, 3], [7, M, 7, M, 7, 3], [None] * 5 + [2]),
        ([1, M], [1, M, M], [0, None, None]),
    ],
)
def test_align_walks_over_pictures(own, ids, origins):
    assert align(own, ids, {M}) == origins
    kinds = [N if number % 2 and one == M else one for number, one in enumerate(own)]  # of two kinds, such as pictures and videos
    assert align(kinds, ids, {M, N}) == origins


@pytest.mark.parametrize(
    ("own", "ids"), [([1, M, 2], [1, M]), ([1, M, 2], [1, M, 3]), ([1, 2], [1, 2, 3]), ([M, 1, M, 2], [M, 3, M, 2])]
)
def test_align_finds_differences(own, ids):
    with pytest.raises(Exception, match=r"\d, \d"):
        align(own, ids, {M})

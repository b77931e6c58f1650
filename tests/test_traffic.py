import pytest
import torch

from gqa_lab.traffic import TrafficMeter


def traffic(program):
    with TrafficMeter() as meter:
        program()
    return meter.bytes_read, meter.bytes_written


X = torch.zeros(10, 4)
TABLE = torch.zeros(100, 4)
OUT = torch.zeros(10, 4)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda: X + 1, (160, 160)),
        (lambda: X.half() + 1, (160 + 80, 80 + 80)),
        (lambda: X[2:5].view(-1).reshape(3, 4).t().unsqueeze(0), (0, 0)),
        (lambda: X[2:5] * 2, (48, 48)),
        (lambda: X + X, (160, 160)),
        (lambda: X.expand(7, 10, 4).sum(), (160, 4)),
        (lambda: X.clone(), (160, 160)),
        (lambda: torch.cat([X, X[:1]]), (176, 176)),
        (lambda: X.zero_(), (0, 160)),
        (lambda: X.add_(1), (160, 160)),
        (lambda: X[:2].copy_(torch.ones(1)), (4, 4 + 32)),
        (lambda: torch.nn.functional.embedding(torch.tensor([3, 5]), TABLE), (16 + 32, 32)),
        (lambda: TABLE.index_select(0, torch.tensor([3])), (8 + 16, 16)),
        (lambda: TABLE.index_copy_(0, torch.tensor([3]), X[:1]), (8 + 16, 16)),
        (lambda: TABLE[torch.tensor([3, 5])], (16 + 32, 32)),
        (lambda: TABLE.gather(0, torch.tensor([[3, 5, 7, 9]])), (32 + 16, 16)),
        (lambda: TABLE.index_put_((torch.tensor([3, 5]),), X[:2]), (16 + 32, 32)),
        (lambda: torch.add(X, 1, out=OUT), (160, 160)),
        (lambda: X @ X.mT, (160, 400)),
        (lambda: torch.empty(100), (0, 0)),
    ],
)
def test_traffic_equals_the_hand_count(program, expected):
    assert traffic(program) == expected


def test_an_operation_that_is_not_pytorchs_own_is_refused_instead_of_guessed():
    @torch.library.custom_op("gqa_lab_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with (
        pytest.raises(RuntimeError, match="TrafficMeter cannot see what gqa_lab_test.double"),
        TrafficMeter(),
    ):
        double(X)

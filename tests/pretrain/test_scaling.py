"The scaling law: constants that made the data are found; a curve falls"
import pytest, torch
from labkit.pretrain.scaling import Law, Point, Text, best_size, fit_law, lab_config, train_size

LAW = Law(1.7, .6, .35, 1.4, .4)

def points(law): return [Point(n, d, 6*n*d, law.loss(n, d)) for n in (5_000, 20_000, 80_000, 300_000) for d in (50_000, 200_000, 800_000)]

def test_fit_finds_the_law():
    found = fit_law(points(LAW))
    for n, d in ((10**6, 10**6), (10**5, 10**7)): assert found.loss(n, d) == pytest.approx(LAW.loss(n, d), rel=.01)

def test_best_size_is_the_bottom():
    n, d = best_size(LAW, 1e12)
    assert 6*n*d == pytest.approx(1e12)
    assert all(LAW.loss(k*n, d/k) > LAW.loss(n, d) for k in (.8, 1.25))

def test_a_curve_falls():
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 4, (260, 17), generator=g).cumsum(1) % 32 # the next token is one of four
    curve = train_size(8, 1, Text(rows[:240], rows[240:], 32), 240*16)
    assert curve[-1].loss < curve[0].loss and curve[-1].tokens == 240*16
    assert curve[-1].compute == pytest.approx(curve[-1].tokens*lab_config(8, 1, Text(rows, rows, 32)).flops_per_token(16))

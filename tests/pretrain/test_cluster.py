"InternEvo's table and the model of it; a thousand ranks in one process"
import numpy as np, pytest, torch.distributed as dist
from labkit.model.config import preset
from labkit.pretrain.cluster import HALF, INTERNEVO, SPLITS, Cluster, Costs, bytes_sent, exposed, fit, least_squares, simulate, speed, split_errors
from labkit.pretrain.parallel import Layout

def test_the_table_is_whole():
    assert len(INTERNEVO) == 32 == len(set(INTERNEVO)) and len({(p.tp, p.zero) for p in INTERNEVO}) == 4
    assert next(p.tgs for p in INTERNEVO if (p.gpus, p.tp, p.zero) == (1024, 1, 0)) == 2271

def test_least_squares_finds_what_made_the_data():
    x = np.linspace(0, 3, 20)
    assert least_squares(lambda p: p[0]*np.exp(-p[1]*x) - 3*np.exp(-.7*x), [1., 1.]) == pytest.approx([3, .7], rel=1e-5)

def test_unseen_points_within_five_percent():
    errors = split_errors(HALF)
    assert len(errors) == 14 and max(map(abs, errors.values())) < .05
    assert max(map(abs, split_errors(SPLITS['8, 64 and 1024 GPUs']).values())) < .05

def test_the_gap_is_predicted():
    c = fit([p for p in INTERNEVO if HALF(p)])
    left = {z: speed(Cluster(1024, 1, z), c)/speed(Cluster(8, 1, z), c) for z in (0, 8)}
    assert left[0] == pytest.approx(.56, abs=.03) and left[8] == pytest.approx(.89, abs=.05)

def test_overlap():
    assert exposed(3., 2., .1) == pytest.approx(1.) and exposed(1., 2., .1) == pytest.approx(.1)

@pytest.mark.parametrize('layout, stage', [(Layout(ddp=128, fsdp=8), 3), (Layout(ddp=4, fsdp=8), 2), (Layout(fsdp=8), 3)])
def test_simulated_bytes_are_those_of_the_formula(layout, stage):
    cfg = preset('internlm2-7b', n_layers=2)
    counted, said = simulate(cfg, layout, stage), bytes_sent(cfg, layout, stage)
    assert counted.keys() == said.keys() and all(counted[k] == pytest.approx(said[k], abs=2) for k in said)
    assert not dist.is_initialized()

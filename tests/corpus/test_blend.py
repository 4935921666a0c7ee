"Blending: proportions, permutations, any number of ranks, resuming, and what is refused."
import json, pickle, subprocess, sys
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from labkit.core.settings import UserError
from labkit.corpus.blend import Blend, apportion, boundaries, permuted, rows_of, turns
from labkit.corpus.tokens import Shards, train_tokenizer, write_shards

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(np.array)

@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(12, 600))
def test_shares_are_whole_numbers(weights, slots):
    count, exact = apportion(weights, slots), weights / weights.sum() * slots
    assert count.sum() == slots and count.min() >= 1 and np.issubdtype(count.dtype, np.integer)
    if exact.min() >= 1: assert np.abs(count - exact).max() < 1

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12).map(np.array))
def test_no_source_is_ever_a_whole_turn_off(count):
    order, n = turns(count), count.sum()
    had = np.cumsum(order[:, None] == np.arange(len(count)), axis=0)
    assert (had[-1] == count).all()
    assert np.abs(had - np.arange(1, n + 1)[:, None] * count / n).max() < 1

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_has_each_number_once(n, key): assert (np.sort(permuted(np.arange(n), n, key)) == np.arange(n)).all()

def test_a_permutation_of_many_is_asked_number_by_number():
    n = 635_000_000
    some = permuted(np.arange(0, n, n // 1000), n, 3)
    assert len(set(some.tolist())) == len(some) and some.min() >= 0 and some.max() < n
    assert (permuted(np.arange(0, n, n // 1000)[5:7], n, 3) == some[5:7]).all(), 'alone as in company'
    assert abs(some.mean() / n - .5) < .05

def test_permutations_of_different_sizes_and_keys_in_one_call():
    i, n, key = np.array([1, 5, 0, 99]), np.array([2, 9, 1, 100]), np.array([7, 8, 9, 10])
    assert (permuted(i, n, key) == [permuted(*x)[0] for x in zip(i, n, key)]).all()

def arrays(sizes): return {f's{k}': 1000 * k + np.arange(n) for k, n in enumerate(sizes)}

SIZES = st.lists(st.integers(20, 90), min_size=1, max_size=4)

@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(2, 10), st.integers(0, 2**70), st.integers(4, 50))
def test_each_pass_has_each_window_once(sizes, seq_len, seed, slots):
    b = Blend(arrays(sizes), seq_len, seed=seed, slots=slots)
    s, epoch, start = b.places(np.arange(300))
    for k, n in enumerate(sizes):
        assert b.windows[k] == n // seq_len - 1
        for e in range(int(epoch[s == k].max(initial=0))):
            at = np.sort(start[(s == k) & (epoch == e)])
            assert len(at) == b.windows[k] and (np.diff(at) == seq_len).all() and at[0] >= 0 and at[-1] + seq_len + 1 <= n
        assert (start[s == k] + seq_len + 1 <= n).all()
    assert b.counts(300) == {f's{k}': int((s == k).sum()) for k in range(len(sizes))}
    assert all((row == row[0] + np.arange(seq_len + 1)).all() for row in b.sequences(np.arange(20)))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(.05, 1), min_size=3, max_size=3), st.integers(1, 20_000))
def test_proportions_hold_at_every_moment(weights, i):
    b = Blend(arrays([40, 60, 80]), 4, dict(zip(('s0', 's1', 's2'), weights)))
    for name, had in b.counts(i).items():
        assert abs(had - i * b.shares[name]) < 1
        assert abs(b.shares[name] - weights[int(name[1])] / sum(weights)) < 1 / 4096

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 12))
def test_all_ranks_together_read_what_one_reads(step, ranks, size):
    b = Blend(arrays([50, 70]), 5, seed=3)
    parts = [b.batch(step, size, r, ranks) for r in range(ranks)]
    assert (np.concatenate(parts) == b.batch(step, size)).all()
    rows = [i for r in range(ranks) for i in rows_of(step, size, r, ranks)]
    assert rows == list(range(step * size, step * size + size)), 'no overlap, nothing left out, in order'

def test_a_source_keeps_its_shuffle_when_another_joins():
    two, three = Blend(arrays([50, 70]), 5), Blend(arrays([50, 70, 90]), 5)
    of = lambda b, k: b.places(np.arange(400))[2][b.places(np.arange(400))[0] == k][:9].tolist()
    assert of(two, 0) == of(three, 0) and of(two, 1) == of(three, 1)

def test_passes_and_seeds_differ():
    b, c = Blend(arrays([500]), 5, seed=0), Blend(arrays([500]), 5, seed=1)
    w = int(b.windows[0])
    first, second, other = b.places(np.arange(w))[2], b.places(np.arange(w, 2 * w))[2], c.places(np.arange(w))[2]
    assert not (first == second).all() and not (first == other).all()

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    work, tok = tmp_path_factory.mktemp('blend'), train_tokenizer(['one two three four five'] * 5, 280)
    write_shards([[5, 6, 7] * k for k in range(1, 60)], work/'a', tok, tokens_per_file=500)
    write_shards([[8, 9] * k for k in range(1, 60)], work/'b', tok)
    return work

def of_folders(work, **more): return Blend({k: Shards(work/k) for k in 'ab'}, 16, dict(a=3, b=1), **more)

def test_two_processes_read_exactly_what_one_reads(folders):
    code = '''if True:
        import sys, numpy as np
        from labkit.corpus.blend import Blend
        from labkit.corpus.tokens import Shards
        work, rank, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        b = Blend({k: Shards(f'{work}/{k}') for k in 'ab'}, 16, dict(a=3, b=1))
        np.save(out, np.stack([b.batch(step, 6, rank, 2) for step in range(40)]))'''
    ranks = [subprocess.Popen([sys.executable, '-c', code, str(folders), str(r), str(folders/f'{r}.npy')]) for r in (0, 1)]
    assert [p.wait(60) for p in ranks] == [0, 0]
    both = np.concatenate([np.load(folders/f'{r}.npy') for r in (0, 1)], axis=1)
    assert (both == np.stack([of_folders(folders).batch(step, 6) for step in range(40)])).all()

@pytest.mark.parametrize('at', [0, 1, 17])
def test_resuming_goes_on_with_the_next_sequence(folders, at):
    b = of_folders(folders)
    whole = [b.batch(step, 6) for step in range(25)]
    state = json.loads(json.dumps(b.state(6 * at)))
    again = of_folders(folders)
    first = again.resume(state) // 6
    assert first == at and all((again.batch(step, 6) == whole[step]).all() for step in range(first, 25))
    assert (again.batch(2, 9)[0] == again.sequences([18])[0]).all(), 'another batch size goes through the same sequences'

def test_a_blend_is_sent_by_its_place(folders):
    b = of_folders(folders)
    assert len(raw := pickle.dumps(b)) < 100_000
    assert (pickle.loads(raw).batch(3, 4) == b.batch(3, 4)).all() and pickle.loads(raw).fingerprint == b.fingerprint

def test_another_blend_is_noticed(folders):
    state = of_folders(folders).state(10)
    arrays_ab = {k: Shards(folders/k) for k in 'ab'}
    for other in (of_folders(folders, seed=1), of_folders(folders, slots=100), Blend(arrays_ab, 8, dict(a=3, b=1)), Blend(arrays_ab, 16, dict(a=2, b=1)),
                  Blend(dict(a=arrays_ab['b'], b=arrays_ab['a']), 16, dict(a=3, b=1))):
        with pytest.raises(UserError, match='another blend'): other.resume(state)
    for damaged in ({}, None, dict(sequence=3)):
        with pytest.raises(UserError, match='not the state'): of_folders(folders).resume(damaged)

def test_what_is_refused(folders, tmp_path):
    a = Shards(folders/'a')
    foreign = write_shards([[5] * 300], tmp_path/'foreign', train_tokenizer(['other words'], 270))
    empty = write_shards([], tmp_path/'empty', train_tokenizer(['one two three four five'] * 5, 280))
    for sources, why in (({}, 'nothing to blend'), (dict(a=a, f=foreign), r'foreign was made with another tokenizer .* than .*a \('), (dict(a=a, e=empty), r'empty: 0 tokens are too few for sequences of 16: at least 32')):
        with pytest.raises(UserError, match=why): Blend(sources, 16)
    for weights, why in ((dict(a=1), 'differ in b'), (dict(a=1, b=1, c=1), 'differ in c'), (dict(a=1, b=0), 'weight of b = 0'), (dict(a=1, b=-1), 'positive'), (dict(a=float('nan'), b=1), 'weight of a'), (dict(a=float('inf'), b=1), 'weight of a')):
        with pytest.raises(UserError, match=why): Blend(dict(a=a, b=Shards(folders/'b')), 16, weights)
    with pytest.raises(UserError, match='slots = 1'): Blend(dict(a=a, b=Shards(folders/'b')), 16, slots=1)
    for rank, ranks in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match='rank'): rows_of(0, 4, rank, ranks)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=6))
def test_boundaries_cut_where_documents_end(docs):
    row = np.array([i for d in docs for i in [*d, 0]])
    b = boundaries(row, 0)
    assert [row[i:j].tolist() for i, j in zip(b, b[1:])] == [[*d, 0] for d in docs]

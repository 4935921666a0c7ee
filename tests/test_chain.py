"The chain: what is done stays done, what changed runs again, an interruption costs one stage; the report is safe and whole"
import json, signal, subprocess, sys, time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
import pytest
from labkit.chain.report import Section, own_ids, page
from labkit.chain.run import NEEDS, STAGES, ChainSettings, done, fingerprint, run_chain
from labkit.chain.stages import WORK, says, variants
from labkit.core.settings import SettingsError, UserError

LABKIT = Path(sys.executable).parent/'labkit'

@pytest.fixture
def chain(tmp_path): return ChainSettings(('corpus', 'pretrain'), 'tiny', tmp_path)

class Stages(dict):
    "Stand-ins that count how often they run"
    def __init__(self): super().__init__({s: self.stage(s) for s in STAGES}); self.ran = []
    def stage(self, name):
        def work(job): self.ran.append(name); return dict(saw=sorted(job.results))
        return work

def quiet(line): pass

def test_every_stage_has_its_function_and_needs_only_earlier_ones():
    assert set(WORK) == set(STAGES)
    for s, needs in NEEDS.items():
        for n in needs: assert STAGES.index(n) < STAGES.index(s)

def test_what_is_done_stays_done_and_what_changed_runs_again(chain, tmp_path, monkeypatch):
    work = Stages()
    run_chain(chain, say=quiet, work=work)
    run_chain(chain, say=quiet, work=work)
    assert work.ran == ['corpus', 'pretrain']
    (tmp_path/'my.ini').write_text('[pretrain]\nlr = 0.5\n')
    monkeypatch.setenv('LABKIT_SETTINGS', str(tmp_path/'my.ini'))
    work.ran.clear(); run_chain(chain, say=quiet, work=work)
    first = list(work.ran)
    (tmp_path/'my.ini').write_text('[pretrain]\nlr = 0.5\n[corpus]\njaccard = 0.5\n')
    work.ran.clear(); run_chain(chain, say=quiet, work=work)
    assert first[-1] == 'pretrain' and work.ran == ['corpus', 'pretrain'], 'a change upstream runs everything behind it'

def test_a_stage_goes_on_only_from_what_was_begun_with_its_own_settings(chain, tmp_path, monkeypatch):
    seen, work = [], Stages()
    def interrupted(job): seen.append(job.goes_on); raise KeyboardInterrupt
    def start():
        with pytest.raises(KeyboardInterrupt): run_chain(chain, say=quiet, work=work | dict(pretrain=interrupted))
    start(); start()
    (tmp_path/'my.ini').write_text('[pretrain]\nbatch_tokens = 512\n')
    monkeypatch.setenv('LABKIT_SETTINGS', str(tmp_path/'my.ini'))
    start(); start()
    assert seen == [False, True, False, True]

def test_an_interrupted_stage_leaves_no_record(chain):
    work = Stages()
    def stop(job): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_chain(chain, say=quiet, work=work | dict(pretrain=stop))
    assert done(chain.out/'corpus') and not done(chain.out/'pretrain')
    run_chain(chain, say=quiet, work=work)
    assert work.ran == ['corpus', 'pretrain']

def test_a_failed_rerun_does_not_leave_the_old_record(chain):
    work = Stages()
    run_chain(chain, say=quiet, work=work)
    def broken(job): raise OSError(28, 'No space left on device')
    with pytest.raises(OSError): run_chain(replace(chain, resume=False), say=quiet, work=work | dict(corpus=broken))
    assert not done(chain.out/'corpus')

def test_a_damaged_record_counts_as_not_done(chain):
    work = Stages()
    run_chain(chain, say=quiet, work=work)
    (chain.out/'corpus'/'done.json').write_text('{"finger')
    run_chain(chain, say=quiet, work=work)
    assert work.ran.count('corpus') == 2

def test_mistakes_are_sentences(chain):
    with pytest.raises(SettingsError, match="Did you mean 'pretrain'"): run_chain(replace(chain, stages=('pretrian',)), say=quiet, work=Stages())
    with pytest.raises(UserError, match="'agent' needs 'quantize'.*--stages"): run_chain(replace(chain, stages=('agent',)), say=quiet, work=Stages())
    p = subprocess.run([LABKIT, 'chain', '--stages', 'agnet', '--out', str(chain.out)], capture_output=True, text=True)
    assert p.returncode == 2 and "Did you mean 'agent'" in p.stderr and 'Traceback' not in p.stderr

def test_fingerprints_see_every_setting():
    assert fingerprint(dict(a=1), []) != fingerprint(dict(a=2), []) != fingerprint(dict(a=2), ['x'])

def test_the_answer_is_a_whole_number():
    assert says('It is 17411.', '17411') and says('17,411', '17411') and not says('174110', '17411') and not says(None, '17411')
    assert all(a.isdigit() for _, a in variants()) and '17411' not in dict(variants()).values()

class Ids(HTMLParser):
    def __init__(self, text): super().__init__(); self.ids, self.refs, self.scripts = [], [], 0; self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs); self.scripts += tag == 'script'
        if 'id' in a: self.ids.append(a['id'])
        for k in ('href', 'xlink:href'):
            if a.get(k, '').startswith('#'): self.refs.append(a[k][1:])

def test_the_report_keeps_figures_apart_and_texts_as_text():
    svg = '<svg><defs><g id="a"/></defs><use xlink:href="#a"/><g clip-path="url(#a)"/></svg>'
    found = Ids(page('t', [Section('<script>x</script>', figures=(svg, svg)), Section('b', 'x < y', table=(('<b>',), ('&',)), figures=(svg,))]))
    assert len(found.ids) == len(set(found.ids)) and set(found.refs) <= set(found.ids) and found.scripts == 0
    assert own_ids(svg, 'p-').count('p-a') == 3

def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path):
    "The real corpus stage, interrupted as a person would"
    argv = [LABKIT, 'chain', '--size', 'tiny', '--stages', 'corpus', '--out', str(tmp_path)]
    p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert 'corpus' in p.stdout.readline()
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=120)
    assert p.returncode == 130 and 'interrupted' in err and 'Traceback' not in err, err
    assert not (tmp_path/'corpus'/'done.json').exists()
    again = subprocess.run(argv, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads((tmp_path/'corpus'/'done.json').read_text())['result']['tokens']['train'] > 1000, again.stderr

@pytest.mark.slow
def test_the_whole_chain_on_real_input(tmp_path):
    p = subprocess.run([LABKIT, 'chain', '--size', 'tiny', '--out', str(tmp_path)], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    text = (tmp_path/'report.html').read_text()
    assert p.stdout.strip().endswith('report.html') and text.count('<section') == 7 and text.count('<svg') >= 5
    t = time.time()
    assert subprocess.run([LABKIT, 'chain', '--size', 'tiny', '--out', str(tmp_path)], capture_output=True, text=True).returncode == 0
    assert time.time() - t < 30, 'the second run finds everything done'

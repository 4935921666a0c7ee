"What the tests of the engine share: a tiny model, and doubles of the runner that lag, break or forget to be numbers."
from types import SimpleNamespace
import torch
from labkit.core.lm import Sampling
from labkit.corpus.tokens import train_tokenizer
from labkit.finetune.lora import LoraConfig, add_lora, lora_layers, save_adapter
from labkit.inference.engine import Engine, EngineSettings
from labkit.inference.quantize import twin
from labkit.inference.runner import TorchRunner
from labkit.inference.sampling import NotFinite, choose
from labkit.model.config import ModelConfig
from labkit.model.transformer import Transformer

TOKENIZER = train_tokenizer(['hello world, the cat sat on the mat. 你好世界 日本語 🦊 {"a": 1, "b": [true]} ' * 3] * 3, 320)
SIZES = dict(vocab_size=TOKENIZER.vocab_size + -TOKENIZER.vocab_size % 4, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, max_seq_len=96)
PROMPTS = ['hello world', 'the cat sat on the mat', '你好', 'a b c d e f g h i j k l m n o p q r', 'z']
GREEDY = Sampling(max_tokens=14, ignore_eos=True)
BAD = TOKENIZER.encode(' 🦊')[0]                               # a prompt with this token is in for trouble

def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**{**SIZES, **changes})).eval().requires_grad_(False)
    for p in model.parameters():
        if p.dim() > 1: p *= 12                               # so that the scores are far apart
    return model

MODEL = tiny()

def engine(model=MODEL, runner=None, guesser=None, journal=None, **changes):
    "A small engine; `runner` is called with it and gives what computes its steps"
    e = Engine(model, TOKENIZER, EngineSettings(**{**dict(backend='torch', block_size=4, cache_tokens=512, max_batch=4, step_tokens=16), **changes}), guesser=guesser, journal=journal)
    if runner: e._start_runner = lambda: setattr(e, 'runner', runner(e)); e._start_runner()
    return e

def run(e, got=None):
    "Step until nothing is left; tokens and reason of each request"
    got = {} if got is None else got
    while e.has_work:
        for o in e.step(): got[o.id] = (got.get(o.id, ((), None))[0] + o.tokens, o.finish_reason)
    return got

def alone(prompt, params=GREEDY, model=MODEL, **changes): return engine(model, max_batch=1, prefix=False, **changes).generate([prompt], params)[0].tokens

def check_empty(e):
    "Everything ended and every block is free, or kept for others and had back by asking"
    s, pool = e.scheduler, e.cache.pool
    assert not s.plan() and not e.has_work and not e._jobs and not s.running and not len(s.waiting) and s.host_bytes == 0
    assert sorted(s.rows) == list(range(s.max_batch)) and not s.coming and not +e.adapters.users
    assert pool.n_free + pool.n_idle == e.cache.n_blocks
    if e.prefix: e.prefix.clear(); e.prefix.sessions.clear()
    assert pool.n_free == e.cache.n_blocks and not any(pool.uses) and not any(pool.kept)

class Double(TorchRunner):
    "torch, with trouble for prompts that hold the token BAD"
    name = 'double'
    def __init__(self, e, trouble=None): super().__init__(e.model, e.cache); self.trouble, self.calls = trouble, 0
    def _in_for_it(self, w): return BAD in w.request.prompt
    def __call__(self, work):
        self.calls += 1
        if self.trouble == 'raise' and any(map(self._in_for_it, work)): raise RuntimeError('the kernel fell over')
        out, at = super().__call__(work).clone(), 0
        for w in work:
            if self.trouble == 'nan' and self._in_for_it(w): out[at:at + w.wants] = float('nan')
            if self.trouble == 'inf' and self._in_for_it(w): out[at:at + w.wants] = float('inf')
            at += w.wants
        return out

class Lagging(Double):
    """A device that runs one step ahead. It computes in order, as a stream does, but whoever asks has to wait for `tokens`; the newest token of each
    row is in the device's memory only, where the next step reads it. It samples with each request's own numbers, which the host uses too when it has to choose"""
    name = 'lagging'
    def __init__(self, e, trouble=None):
        super().__init__(e, trouble)
        self.engine = e
        self.last, self.state, self.flying, self.most = {}, {}, 0, 0
    def _draw(self, w, logits):
        r = w.request
        seen, generator = self.state.setdefault(r, (list(r.tokens), self.engine._jobs[r.id].generator))
        del seen[len(r.tokens) + r.in_flight:]
        seen[:len(r.tokens)] = r.tokens
        try: token = choose(logits, r.params, seen, generator, None, r.prompt, TOKENIZER.eos_ids).token
        except NotFinite: token = -1
        seen.append(token)
        return token
    def launch(self, work):
        ids = [[self.last[w.request.row] if t == -1 else t for t in w.ids] for w in work]
        assert all(w.wants <= 1 for w in work), 'guesses are checked with scores'
        logits = iter(self([SimpleNamespace(request=w.request, start=w.start, n=w.n, ids=i, wants=w.wants, guess=()) for w, i in zip(work, ids)]))
        out = []
        for w in work:
            if w.wants: out.append(self._draw(w, next(logits))); self.last[w.request.row] = out[-1] if out[-1] >= 0 else 0
        self.flying += 1; self.most = max(self.most, self.flying)
        return SimpleNamespace(tokens=lambda: self._arrive(out))
    def _arrive(self, out):
        self.flying -= 1
        if self.trouble == 'lost': raise RuntimeError('an illegal memory access was encountered')
        return out


def write_adapter(folder):
    "A random LoRA adapter of MODEL, as a folder"
    cfg, g = LoraConfig(rank=4), torch.Generator().manual_seed(1)
    m = add_lora(twin(MODEL), cfg)
    for _, l in lora_layers(m): l.lora_A.data.normal_(0, .5, generator=g); l.lora_B.data.normal_(0, .5, generator=g)
    save_adapter(m, folder, cfg)
    return folder

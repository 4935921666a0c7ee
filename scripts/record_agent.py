"""Record a model's runs of the agent labs' question: `python scripts/record_agent.py OUT.jsonl --source WORDS [--adapter DIR] [--model NAME]`.

With `--by-hand` the replies are the ones written below, which make the mistakes that a lab wants to show.

The recording replays without the model (`labkit.core.lm.Recording`). Every row says which model wrote it.
"""
import argparse, json
from pathlib import Path
from labkit.agents.react import AgentSettings, ReAct
from labkit.core.files import write_jsonl
from labkit.core.lm import Completion, Recorder
from labkit.core.settings import RunSettings
from labkit.inference.engine import Engine

QUESTIONS = dict(en='Let a_n be the arithmetic sequence with first term 1 and common difference 2, and b_n the geometric sequence with first term 1 and common ratio 2. Find a_1 b_1 + a_2 b_2 + ... + a_10 b_10.',
                 zh='设数列 a_n 是以 1 为首项，2 为公差的等差数列，数列 b_n 是以 1 为首项，2 为公比的等比数列，则 a_1b_1 + a_2b_2 + … + a_10b_10 等于多少？')

BY_HAND = [' I look it up.\nAction: search\nAction Input: sum of a_n b_n',
           ' Then I work it out: it must be about 17000.',
           ' I compute both sequences and add the products.\nAction: python\nAction Input: a = [1 + 2*i for i in range(10)]\nb = [2**i for i in range(10)]\nsum(a[i] * b[i] for i in range(1, 11))',
           ' The lists begin at 0.\nAction: python\nAction Input: a = [1 + 2*i for i in range(10)]\nb = [2**i for i in range(10)]\nsum(a[i] * b[i] for i in range(10))',
           ' The program gave the sum.\nFinal Answer: 17411']

class Hand:
    "Replies that a person wrote"
    def __init__(self): self.lines = iter(BY_HAND)
    def generate(self, prompts, params): return [Completion(next(self.lines)) for _ in prompts]

def runs(lm, plain: bool):
    "Ask without tools, with native calls, and in the textual protocol"
    for q in QUESTIONS.values():
        if plain: lm.chat([dict(role='user', content=q)], None, max_tokens=160, temperature=0.)
        print(ReAct(lm, settings=AgentSettings(max_seconds=1e6)).run(q).to_markdown(), flush=True)
    if plain: print(ReAct(lm, settings=AgentSettings(protocol='text', max_steps=2, max_tokens=100, max_seconds=1e6)).run(QUESTIONS['en']).to_markdown(), flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('out', type=Path); p.add_argument('--model', default='smollm2-135m-instruct'); p.add_argument('--adapter'); p.add_argument('--device', default='auto'); p.add_argument('--source', required=True, help='which model answers, in words')
    p.add_argument('--by-hand', action='store_true', help='no model: record the replies written in this script')
    a = p.parse_args()
    if a.by_hand:
        lm = Recorder(Hand())
        print(ReAct(lm, settings=AgentSettings(protocol='text')).run(QUESTIONS['en']).to_markdown())
        return print(write_jsonl(a.out, ({**r, 'source': a.source} for r in lm.rows)), 'calls in', a.out.name)
    lm = Recorder(Engine.open(a.model, adapter=a.adapter, run=RunSettings(device=a.device, dtype='float32')))
    try: runs(lm, not a.adapter)
    finally: print(write_jsonl(a.out, ({**r, 'source': a.source} for r in lm.rows)), 'calls in', a.out.name)

if __name__ == '__main__': main()

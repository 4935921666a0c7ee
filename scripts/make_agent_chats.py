"""Write data_samples/instructions_agents.jsonl: `python scripts/make_agent_chats.py`.

Each chat is a run of the real agent loop with the real sandboxed interpreter. Only the model is replaced, by a teacher that knows the
code for its question; the run is kept if its answer is the value that this script computes by itself. Fixed seed; licence Apache-2.0.
The problem that the labs and the chain ask (arithmetic 1, 2; geometric 1, 2; ten terms) is never among them.
"""
import argparse, datetime, json, math, random
from collections.abc import Iterator
from pathlib import Path
from labkit.agents.react import AgentSettings, ReAct
from labkit.core.files import write_jsonl

OUT = Path(__file__).resolve().parents[1]/'data_samples'/'instructions_agents.jsonl'
ASKED = (1, 2, 1, 2, 10)  # the question that is kept out
Problem = tuple[str, str, str]  # question, code, the value that it should print

class Teacher:
    "An LM that answers one question: first with its code, then with what the code printed"
    model_name = 'a program'
    def __init__(self, code: str, zh: bool): self.code, self.zh = code, zh
    def chat(self, messages, tools=None, **params):
        if messages[-1]['role'] == 'tool': return dict(role='assistant', content=('答案是 {}。' if self.zh else 'The answer is {}.').format(messages[-1]['content']))
        arguments = json.dumps(dict(code=self.code), ensure_ascii=False)
        return dict(role='assistant', content='', tool_calls=[dict(id='call_1', type='function', function=dict(name='python', arguments=arguments))])

# ---- sequences
PRODUCTS = [
    'a_n is an arithmetic sequence with first term {a} and common difference {d}. b_n is a geometric sequence with first term {b} and common ratio {q}. Find a_1 b_1 + a_2 b_2 + ... + a_{n} b_{n}.',
    'The sequence a_n is arithmetic with first term {a} and difference {d}; the sequence b_n is geometric with first term {b} and ratio {q}. What is a_1 b_1 + ... + a_{n} b_{n}?',
    'Given an arithmetic sequence a_n (first term {a}, common difference {d}) and a geometric sequence b_n (first term {b}, common ratio {q}), compute the sum of a_i b_i for i from 1 to {n}.',
    '已知等差数列 a_n 的首项为 {a}，公差为 {d}，等比数列 b_n 的首项为 {b}，公比为 {q}，求 a_1b_1 + a_2b_2 + … + a_{n}b_{n}。',
    'a_n 是以 {a} 为首项，{d} 为公差的等差数列，b_n 是以 {b} 为首项，{q} 为公比的等比数列，求 a_1b_1 + … + a_{n}b_{n}。',
    '数列 a_n 等差，首项 {a}，公差 {d}；数列 b_n 等比，首项 {b}，公比 {q}。前 {n} 项的乘积之和 a_1b_1 + a_2b_2 + … + a_{n}b_{n} 是多少？']

def products(rng: random.Random) -> Iterator[Problem]:
    "Sums of a_i b_i"
    while True:
        for text in PRODUCTS:
            a, d, b, q, n = rng.choice((1, 1, 2, 3, 4, 5, 7)), rng.choice((2, 2, 3, 4, 5, 6)), rng.choice((1, 1, 2, 3, 4, 5)), rng.choice((2, 2, 3, 4, 5)), rng.randint(4, 16)
            if (a, d, b, q) == ASKED[:4]: d = 3
            code = f'a = [{a} + {d}*i for i in range({n})]\nb = [{b} * {q}**i for i in range({n})]\nprint(sum(x*y for x, y in zip(a, b)))'
            yield text.format(a=a, d=d, b=b, q=q, n=n), code, str(sum((a + d*i) * b * q**i for i in range(n)))

ARITHMETIC = ['Find the sum of the first {n} terms of the arithmetic sequence with first term {a} and common difference {d}.', '等差数列首项为 {a}，公差为 {d}，求前 {n} 项的和。']
GEOMETRIC = ['Find the sum of the first {n} terms of the geometric sequence with first term {a} and common ratio {q}.', '等比数列首项为 {a}，公比为 {q}，求前 {n} 项的和。']
TERM = ['What is term number {n} of the arithmetic sequence with first term {a} and common difference {d}?', '等差数列首项为 {a}，公差为 {d}，第 {n} 项是多少？']

def sequences(rng: random.Random) -> Iterator[Problem]:
    "One sequence: sums and terms"
    while True:
        for i in range(2):
            a, d, q, n = rng.randint(1, 9), rng.randint(2, 9), rng.randint(2, 5), rng.randint(6, 25)
            yield ARITHMETIC[i].format(a=a, d=d, n=n), f'a = [{a} + {d}*i for i in range({n})]\nprint(sum(a))', str(n * (2*a + (n-1)*d) // 2)
            yield GEOMETRIC[i].format(a=a, q=q, n=n), f'b = [{a} * {q}**i for i in range({n})]\nprint(sum(b))', str(a * (q**n - 1) // (q - 1))
            yield TERM[i].format(a=a, d=d, n=n), f'a = [{a} + {d}*i for i in range({n})]\nprint(a[-1])', str(a + (n-1)*d)

# ---- numbers
def numbers(rng: random.Random) -> Iterator[Problem]:
    "Large products, powers, means, sums with a condition"
    while True:
        for zh in (False, True):
            x, y, p, m = rng.randint(1000, 99999), rng.randint(1000, 99999), rng.randint(11, 40), rng.randint(3, 13)
            xs, top = [rng.randint(1, 99) for _ in range(5)], rng.randint(50, 900)
            yield (f'{x} 乘以 {y} 等于多少？' if zh else f'What is {x} times {y}?'), f'print({x} * {y})', str(x * y)
            yield (f'求 {m} 的 {p} 次方。' if zh else f'Compute {m} to the power of {p}.'), f'print({m}**{p})', str(m ** p)
            yield (f"求 {'、'.join(map(str, xs))} 的平均数。" if zh else f"What is the mean of {', '.join(map(str, xs))}?"), f'x = {xs}\nprint(sum(x) / len(x))', str(sum(xs) / len(xs))
            yield (f'{top} 以内 {m} 的倍数之和是多少？' if zh else f'What is the sum of all multiples of {m} up to {top}?'), f'print(sum(range({m}, {top} + 1, {m})))', str(m * (top // m) * (top // m + 1) // 2)

# ---- dates and texts
def dates(rng: random.Random) -> Iterator[Problem]:
    "Days between dates, weekdays"
    import calendar
    while True:
        for zh in (False, True):
            a = datetime.date(rng.randint(1950, 2020), rng.randint(1, 12), rng.randint(1, 28)); b = a + datetime.timedelta(days=rng.randint(30, 9000))
            diff = f'from datetime import date\nprint((date({b.year}, {b.month}, {b.day}) - date({a.year}, {a.month}, {a.day})).days)'
            days = str(b.toordinal() - a.toordinal())
            yield (f'从 {a} 到 {b} 有多少天？' if zh else f'How many days are there from {a} to {b}?'), diff, days
            if not zh: yield f'Which day of the week was {a}?', f"from datetime import date\nprint(date({a.year}, {a.month}, {a.day}).strftime('%A'))", calendar.day_name[calendar.weekday(a.year, a.month, a.day)]

WORDS = ('strawberry', 'mississippi', 'bookkeeper', 'parallelogram', 'banana', 'committee', 'engineering', 'necessary', 'assessment', 'temperature')

def texts(rng: random.Random) -> Iterator[Problem]:
    "Counting and turning letters"
    while True:
        for zh in (False, True):
            w, v = rng.choice(WORDS), rng.choice(WORDS)
            c = rng.choice(w)
            yield (f'单词 {w} 里有几个字母 {c}？' if zh else f"How many times does the letter {c} occur in '{w}'?"), f"print('{w}'.count('{c}'))", str(sum(x == c for x in w))
            yield (f'把单词 {v} 倒过来写。' if zh else f"Write the word '{v}' backwards."), f"print('{v}'[::-1])", ''.join(reversed(v))

# ---- the file
SHARES = ((products, 42), (sequences, 18), (numbers, 16), (dates, 9), (texts, 8))

def problems(seed: int) -> Iterator[Problem]:
    "All problems, none twice, shuffled"
    rng, chosen = random.Random(seed), {}
    for make, n in SHARES:
        stream = make(rng); want = len(chosen) + n
        while len(chosen) < want: chosen.setdefault((p := next(stream))[0], p)
    out = list(chosen.values()); rng.shuffle(out)
    yield from out

def chat(question: str, code: str, value: str) -> dict:
    "Run the agent on a problem; the chat to learn from, if the answer is right"
    zh = not question.isascii()
    trace = ReAct(Teacher(code, zh), settings=AgentSettings(max_steps=2)).run(question)
    if trace.steps[0].observation != value: raise SystemExit(f'{question}: the program gave {trace.steps[0].observation}, expected {value}')
    return trace.to_chat()

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0]); p.add_argument('--out', type=Path, default=OUT); p.add_argument('--seed', type=int, default=1)
    args = p.parse_args()
    asked = str(sum((ASKED[0] + ASKED[1]*i) * ASKED[2] * ASKED[3]**i for i in range(ASKED[4])))
    rows = [chat(*x) for x in problems(args.seed)]
    if any(asked in json.dumps(r) for r in rows): raise SystemExit(f'the answer {asked} is in the data')
    print(f'{write_jsonl(args.out, rows)} chats in {args.out.name}')

if __name__ == '__main__': main()

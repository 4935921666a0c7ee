"nbs/chain.svg, the picture of the start page: the stages, and what each hands to the next. Its colours are readable on light and on dark ground, and it needs no network"
from pathlib import Path
from labkit.core.plots import COLORS, STAGES

HANDS_ON = ('shards', 'model', 'checkpoint', 'adapter', 'tokens', 'HTTP', 'scores') # between one stage and the next
BOX, GAP, HIGH, GREY = 100, 24, 36, '#7d8590'

def box(i: int, name: str) -> str:
    x = i * (BOX + GAP) + 1
    return (f'<rect x="{x}" y="1" width="{BOX}" height="{HIGH}" rx="8" fill="{COLORS[0]}"/>'
            f'<text x="{x + BOX / 2}" y="24" font-size="15" font-weight="600" fill="white">{name}</text>')

def arrow(i: int, what: str) -> str:
    a, b, y = (i + 1) * BOX + i * GAP + 4, (i + 1) * (BOX + GAP) - 2, HIGH / 2 + 1
    return (f'<path d="M{a} {y}H{b - 5}" stroke="{GREY}" stroke-width="2"/><path d="M{b} {y}l-7 -5v10z" fill="{GREY}"/>'
            f'<text x="{(a + b) / 2}" y="56" font-size="14" fill="{GREY}">{what}</text>')

def picture() -> str:
    width = len(STAGES) * (BOX + GAP) - GAP + 2
    whole = (f'<path d="M1 68v8q0 6 6 6H{width - 7}q6 0 6 -6v-8" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
             f'<text x="{width / 2}" y="102" font-size="14" fill="{GREY}">chain: all of it in one run, with one report</text>')
    parts = [*(box(i, s) for i, s in enumerate(STAGES)), *(arrow(i, s) for i, s in enumerate(HANDS_ON)), whole]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 110" width="{width}" role="img" text-anchor="middle" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f'<title>{" → ".join(STAGES)}</title>\n' + '\n'.join(parts) + '\n</svg>\n')

if __name__ == '__main__': (Path(__file__).resolve().parents[1]/'nbs'/'chain.svg').write_text(picture())

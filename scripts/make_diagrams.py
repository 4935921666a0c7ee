"nbs/chain.svg, the picture of the start page: the stages, and what each hands to the next. Its colours are readable on light and on dark ground, and it needs no network"
from pathlib import Path
from labkit.core.plots import COLORS, STAGES

HANDS_ON = ('shards', 'model', 'checkpoint', 'adapter', 'tokens', 'HTTP', 'scores') # between one stage and the next
ROW, BOX, HIGH, GAP, DOWN, GREY = 4, 112, 38, 46, 106, '#7d8590'                     # stages in a row; pixels

def place(i: int) -> tuple[int, int]: return 1 + i % ROW * (BOX + GAP), 1 + i // ROW * DOWN

def box(i: int, name: str) -> str:
    x, y = place(i)
    return (f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="8" fill="{COLORS[0]}"/>'
            f'<text x="{x + BOX / 2}" y="{y + 25}" font-size="17" font-weight="600" fill="white">{name}</text>')

def arrow(i: int, what: str) -> str:
    "From stage i to the next; at the end of a row down and back to the left"
    (x, y), (x1, y1) = place(i), place(i + 1)
    if y == y1: a, b, middle, text = f'M{x + BOX + 5} {y + HIGH / 2}H{x1 - 10}', f'M{x1 - 4} {y + HIGH / 2}l-8 -5v10z', (x + BOX + x1) / 2, y + HIGH + 17
    else: a, b, middle, text = f'M{x + BOX / 2} {y + HIGH + 5}V{y1 - 28}H{x1 + BOX / 2}V{y1 - 10}', f'M{x1 + BOX / 2} {y1 - 4}l-5 -8h10z', (x + x1 + BOX) / 2, y1 - 12
    return (f'<path d="{a}" fill="none" stroke="{GREY}" stroke-width="2" stroke-linejoin="round"/><path d="{b}" fill="{GREY}"/>'
            f'<text x="{middle}" y="{text}" font-size="14" fill="{GREY}">{what}</text>')

def picture() -> str:
    width, y = ROW * (BOX + GAP) - GAP + 2, DOWN + HIGH + 28
    whole = (f'<path d="M1 {y}v6q0 6 6 6H{width - 7}q6 0 6 -6v-6" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
             f'<text x="{width / 2}" y="{y + 30}" font-size="15" fill="{GREY}">chain: all of it in one run, with one report</text>')
    parts = [*(arrow(i, s) for i, s in enumerate(HANDS_ON)), *(box(i, s) for i, s in enumerate(STAGES)), whole]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 38}" width="{width}" role="img" text-anchor="middle" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f'<title>{" → ".join(STAGES)}</title>\n' + '\n'.join(parts) + '\n</svg>\n')

if __name__ == '__main__': (Path(__file__).resolve().parents[1]/'nbs'/'chain.svg').write_text(picture())

"The diagrams of the notebooks, as SVG files beside them. Their colours are readable on light and on dark ground, and they need no network"
from html import escape
from pathlib import Path
from labkit.core.plots import COLORS, STAGES

HANDS_ON = ('shards', 'model', 'checkpoint', 'adapter', 'tokens', 'HTTP', 'scores') # between one stage and the next
ROW, BOX, HIGH, GAP, DOWN, GREY = 4, 112, 38, 46, 106, '#7d8590'                     # stages in a row; pixels
FONT = 'system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'

def svg(title: str, width: float, height: float, parts: list[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" text-anchor="middle" font-family="{FONT}">\n'
            f'<title>{escape(title)}</title>\n' + '\n'.join(parts) + '\n</svg>\n')

def place(i: int) -> tuple[int, int]: return 1 + i % ROW * (BOX + GAP), 1 + i // ROW * DOWN

def grey(x: float, y: float, text: str, size: int = 14) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{GREY}">{escape(text)}</text>' if text else ''

def box(x: float, y: float, name: str, wide: int = BOX, below: str = '') -> str:
    "A name on a coloured ground, and perhaps a grey line under it"
    return (f'<rect x="{x}" y="{y}" width="{wide}" height="{HIGH}" rx="8" fill="{COLORS[0]}"/>'
            f'<text x="{x + wide / 2}" y="{y + 25}" font-size="17" font-weight="600" fill="white">{name}</text>{grey(x + wide / 2, y + HIGH + 17, below, 13)}')

def arrow(line: str, head: str, middle: float, text: float, what: str = '') -> str:
    return f'<path d="{line}" fill="none" stroke="{GREY}" stroke-width="2" stroke-linejoin="round"/><path d="{head}" fill="{GREY}"/>{grey(middle, text, what)}'

def to_right(x: float, y: float, x1: float, y1: float, what: str = '') -> str:
    "From the right edge of a box, whose middle is (x, y), to the left edge of another at (x1, y1)"
    bend = f'H{x1 - 10}' if y == y1 else f'C{(x + x1) / 2} {y} {(x + x1) / 2} {y1} {x1 - 10} {y1}'
    return arrow(f'M{x + 5} {y}{bend}', f'M{x1 - 4} {y1}l-8 -5v10z', (x + x1) / 2, (y + y1) / 2 + HIGH / 2 + 17, what)

def next_stage(i: int, what: str) -> str:
    "From stage i to the next; at the end of a row down and back to the left"
    (x, y), (x1, y1) = place(i), place(i + 1)
    if y == y1: return to_right(x + BOX, y + HIGH / 2, x1, y + HIGH / 2, what)
    return arrow(f'M{x + BOX / 2} {y + HIGH + 5}V{y1 - 28}H{x1 + BOX / 2}V{y1 - 10}', f'M{x1 + BOX / 2} {y1 - 4}l-5 -8h10z', (x + x1 + BOX) / 2, y1 - 12, what)

def bracket(y: float, width: float, what: str) -> str:
    "A brace under everything above it"
    return (f'<path d="M1 {y}v6q0 6 6 6H{width - 7}q6 0 6 -6v-6" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
            + grey(width / 2, y + 30, what, 15))

def stages() -> str:
    "The start page: the stages, and what each hands to the next"
    width, y = ROW * (BOX + GAP) - GAP + 2, DOWN + HIGH + 28
    parts = [*(next_stage(i, s) for i, s in enumerate(HANDS_ON)), *(box(*place(i), s) for i, s in enumerate(STAGES))]
    return svg(' → '.join(STAGES), width, y + 38, [*parts, bracket(y, width, 'chain: all of it in one run, with one report')])

def settings() -> str:
    "Three places that a setting comes from"
    steps, wide, step = (('dataclass', 'default, type, help'), ('settings.ini', 'what you changed'), ('command line', 'this run only')), 152, 204
    parts = [box(1 + i * step, 1, name, wide, below) for i, (name, below) in enumerate(steps)]
    return svg(' → '.join(name for name, _ in steps), 2 * step + wide + 2, 64, [*parts, *(to_right(1 + i * step + wide, 20, 1 + (i + 1) * step, 20) for i in range(2))])

def protocol() -> str:
    "Three things that speak the protocol, and three that use it"
    speak, use, wide, down = (('Engine', 'in this process'), ('Endpoint', "any server of OpenAI's API"), ('Recording', 'answers from a file')), ('evaluate', 'agents', 'RLHF'), 128, 76
    left, middle, right = 30, 244, 400
    parts = [box(middle, 1 + down, 'LM', 72)]
    for i, (name, below) in enumerate(speak): parts += [box(left, 1 + i * down, name, wide, below), to_right(left + wide, 20 + i * down, middle, 20 + down)]
    for i, name in enumerate(use): parts += [box(right, 1 + i * down, name), to_right(middle + 72, 20 + down, right, 20 + i * down)]
    return svg('Engine, Endpoint and Recording → LM → evaluate, agents and RLHF', right + BOX + 2, 2 * down + 64, parts)

def chain() -> str:
    "The stages that `labkit chain` runs: each arrow is a file, or HTTP"
    at = dict(corpus=(0, 0), pretrain=(1, 0), finetune=(0, 1), quantize=(1, 1), serve=(2, 1), evaluate=(3, .5), agent=(3, 1.5))
    files = (('corpus', 'pretrain', 'tokenizer, shards'), ('finetune', 'quantize', 'LoRA adapter'), ('quantize', 'serve', '4-bit model'), ('serve', 'evaluate', ''), ('serve', 'agent', ''))
    step, down = 160, 84
    at = {name: (1 + step * x, 1 + down * y) for name, (x, y) in at.items()}
    parts = [to_right(at[a][0] + BOX, at[a][1] + HIGH / 2, at[b][0], at[b][1] + HIGH / 2, what) for a, b, what in files]
    parts.append(grey(at['evaluate'][0] + 18, at['serve'][1] + HIGH / 2 + 5, 'HTTP'))
    width, y = 3 * step + BOX + 2, 1.5 * down + HIGH + 14
    return svg('; '.join(f'{a} → {b}' for a, b, _ in files), width, y + 38, [*parts, *(box(*xy, name) for name, xy in at.items()), bracket(y, width, 'report: every stage puts its figures in')])

if __name__ == '__main__':
    nbs = Path(__file__).resolve().parents[1]/'nbs'
    for name, drawn in {'chain': stages(), '0_start/settings': settings(), '0_start/protocol': protocol(), '9_chain/stages': chain()}.items(): (nbs/f'{name}.svg').write_text(drawn)

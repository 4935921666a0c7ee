"Write the list of labs in _quarto.yml from the folders of nbs/, in teaching order"
import re
from pathlib import Path

root = Path(__file__).resolve().parents[1]
SECTIONS = {'0_start': '0 Start', '1_corpus': '1 Corpus', '2_model': '2 Model', '3_pretrain': '3 Pretrain', '4_finetune': '4 Fine-tune', '5_inference': '5 Inference',
            '6_serve': '6 Serve', '7_evaluate': '7 Evaluate', '8_agents': '8 Agents', '9_chain': '9 Chain', 'solutions': 'Solutions'}
BEGIN, END = '    contents:\n      - nbs/index.ipynb\n', '      - nbs/glossary.ipynb\n'

def number(nb: Path) -> tuple[int, str]: return int(re.match(r'\d+', nb.name)[0]), nb.name

def contents() -> str:
    out = []
    for folder, title in SECTIONS.items():
        labs = sorted((root/'nbs'/folder).glob('*.ipynb'), key=number)
        out += [f'      - section: "{title}"', '        contents:', *(f'          - {nb.relative_to(root)}' for nb in labs)]
    return '\n'.join(out) + '\n'

if __name__ == '__main__':
    path = root/'_quarto.yml'
    text = path.read_text()
    head, rest = text.split(BEGIN)
    path.write_text(head + BEGIN + contents() + END + rest.split(END, 1)[1])

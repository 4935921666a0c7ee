"Draw the sample of interleaved image–text records in data_samples/images: good pictures, broken ones, a small film. The same bytes at every run of one version of pillow"
import hashlib, json, struct, zlib
from pathlib import Path
from PIL import Image, ImageDraw

out = Path(__file__).resolve().parents[1]/'data_samples'/'images'
URL = 'https://example.org/pictures/'

def canvas(w, h, top, bottom):
    "A vertical gradient"
    im = Image.new('RGB', (w, h)); d = ImageDraw.Draw(im)
    for y in range(h): d.line([(0, y), (w, y)], fill=tuple(a + (b - a) * y // h for a, b in zip(top, bottom)))
    return im, d

def bridge():
    im, d = canvas(320, 220, (170, 205, 235), (240, 225, 205))
    d.rectangle([0, 160, 320, 220], fill=(70, 120, 160)); d.arc([40, 60, 280, 240], 180, 360, fill=(110, 90, 80), width=14); d.rectangle([0, 96, 320, 108], fill=(110, 90, 80))
    for x in range(60, 280, 20): d.line([(x, 108), (x, 66 + abs(x - 160) ** 2 // 140 + 30)], fill=(110, 90, 80), width=3)
    return im

def teapot():
    im, d = canvas(300, 240, (245, 235, 215), (200, 170, 140))
    d.ellipse([80, 90, 220, 210], fill=(150, 60, 45)); d.ellipse([110, 75, 190, 110], fill=(120, 45, 35)); d.ellipse([142, 62, 158, 80], fill=(90, 35, 25))
    d.polygon([(215, 130), (275, 95), (282, 108), (220, 170)], fill=(150, 60, 45)); d.arc([40, 110, 110, 190], 90, 270, fill=(150, 60, 45), width=12)
    return im

def mountains():
    im, d = canvas(360, 200, (120, 160, 210), (235, 240, 245))
    for k, (x, y) in enumerate(((60, 70), (170, 40), (290, 85))): d.polygon([(x - 110, 200), (x, y), (x + 110, 200)], fill=(90 + 20 * k, 105 + 12 * k, 110 + 10 * k)); d.polygon([(x - 24, y + 30), (x, y), (x + 24, y + 30)], fill=(250, 250, 250))
    d.ellipse([300, 15, 335, 50], fill=(250, 215, 120))
    return im

def chart():
    im = Image.new('RGB', (260, 200), 'white'); d = ImageDraw.Draw(im)
    for k, h in enumerate((40, 85, 60, 130, 110)): d.rectangle([30 + k * 44, 180 - h, 60 + k * 44, 180], fill=((59, 111, 182), (217, 130, 43))[k % 2])
    d.line([(20, 10), (20, 180), (250, 180)], fill='black', width=2)
    return im

def bomb(side):
    "A valid PNG of a few kilobytes that unpacks to side × side pixels of one bit"
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    pack = zlib.compressobj(9); row = b'\0' * (side // 8 + 1)
    data = b''.join(pack.compress(row) for _ in range(side)) + pack.flush()
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)) + chunk(b'IDAT', data) + chunk(b'IEND', b'')

def film(path):
    "Three scenes, with frames that repeat: a ball that moves, a picture that stands, a bar that grows"
    frames, ms = [], []
    for k in range(8): im = Image.new('RGB', (96, 72), (30, 50, 90)); ImageDraw.Draw(im).ellipse([8 * k, 30, 8 * k + 16, 46], fill=(250, 220, 90)); frames.append(im); ms.append(120)
    for k in range(4): frames.append(mountains().resize((96, 72))); ms.append(200 + 10 * k)
    for k in range(6): im = Image.new('RGB', (96, 72), (240, 240, 235)); ImageDraw.Draw(im).rectangle([10, 60 - 9 * k, 40, 64], fill=(192, 80, 77)); frames.append(im); ms.append(150)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=ms, loop=0, optimize=False)

def ref(name, caption, size): return dict(url=URL + name, sha256=hashlib.sha256((URL + name).encode()).hexdigest(), caption=caption, width=str(size[0]), height=str(size[1]))

if __name__ == '__main__':
    out.mkdir(parents=True, exist_ok=True)
    good = {'bridge.jpg': bridge(), 'teapot.png': teapot().quantize(64), 'mountains.jpg': mountains(), 'chart.png': chart().quantize(8)}
    for name, im in good.items(): im.save(out/name, **(dict(quality=82) if name.endswith('jpg') else dict(optimize=True)))
    bridge().resize((240, 165)).save(out/'bridge_again.jpg', quality=45)
    Image.new('RGB', (24, 24), (200, 30, 30)).save(out/'icon.png'); Image.new('RGB', (300, 200), (255, 255, 255)).save(out/'blank.png'); chart().resize((900, 60)).quantize(8).save(out/'banner.png')
    (out/'cut.jpg').write_bytes((out/'mountains.jpg').read_bytes()[:2500]); (out/'page.jpg').write_text('<html>404 not found</html>'); (out/'empty.png').write_bytes(b''); (out/'bomb.png').write_bytes(bomb(13_000))
    film(out/'film.gif')
    at = lambda name: f'![]({URL}{name})'
    rows = [dict(id='bridge-en', img_list=[ref('bridge.jpg', 'A stone bridge with one arch over a calm river', (320, 220))], content=f"{at('bridge.jpg')}\nThe bridge carries the road over the river in a single arch.\nIts deck is flat, and the thin piers between deck and arch share the load."),
            dict(id='tea-zh', img_list=[ref('teapot.png', '一把紫砂茶壶放在桌上', (300, 240)), ref('mountains.jpg', '远处的三座雪山和太阳', (360, 200))], content=f"泡茶要用新烧开的水。\n{at('teapot.png')}\n茶壶先用热水温过，再放茶叶。\n{at('mountains.jpg')}\n高山上的茶园雾气多，茶叶长得慢，味道更浓。"),
            dict(id='chart-en', img_list=[ref('chart.png', 'Five bars of different heights in two colours', (260, 200))], content=f"The number of readers changed from year to year.\n{at('chart.png')}"),
            dict(id='copy-zh', img_list=[ref('bridge_again.jpg', '河上的一座单孔石桥', (240, 165))], content=f"{at('bridge_again.jpg')}\n这座石桥只有一个桥孔。"),
            dict(id='broken', img_list=[ref(n, c, s) for n, c, s in (('icon.png', 'A small red icon in the corner', (24, 24)), ('blank.png', 'A white picture with nothing on it', (300, 200)), ('banner.png', 'A banner that is much too wide', (900, 60)), ('cut.jpg', 'Mountains of which the end is missing', (360, 200)),
                 ('page.jpg', 'An error page in place of a picture', (100, 100)), ('empty.png', 'A file without a single byte', (10, 10)), ('bomb.png', 'A hundred and sixty-nine million black pixels', (13000, 13000)), ('gone.jpg', 'A picture that nobody has kept', (320, 200)))], content='\n'.join(at(n) for n in ('icon.png', 'blank.png', 'banner.png', 'cut.jpg', 'page.jpg', 'empty.png', 'bomb.png', 'gone.jpg')) + '\nEight pictures, none of them of use.'),
            dict(id='captions', img_list=[ref('bridge.jpg', 'IMG_2043.JPG', (320, 220)), ref('teapot.png', 'tea', (300, 240)), ref('mountains.jpg', 'Ein Gebirge mit drei Gipfeln unter einer hellen Sonne', (360, 200))], content=f"{at('bridge.jpg')}\n{at('teapot.png')}\n{at('mountains.jpg')}\nThree captions that a filter should notice."),
            dict(id='film', img_list=[dict(ref('film.gif', 'A ball rolls, mountains stand, a bar grows', (96, 72)))], content=f"{at('film.gif')}\nA film of three scenes.")]
    (out/'records.jsonl').write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), encoding='utf-8')
    print(sum(p.stat().st_size for p in out.iterdir()), 'bytes in', len(list(out.iterdir())), 'files')

"""Write data_samples/instructions.jsonl and data_samples/instructions_heldout.jsonl: `python scripts/make_instructions.py`.

All texts are written for this project (Apache-2.0). What can be computed is computed here: sums, tool results, program outputs.
The held-out file asks the same kinds of things with other values, and with tools that the training file never shows.
"""
import contextlib, io, json, random
from pathlib import Path

OUT = Path(__file__).resolve().parents[1]/'data_samples'

# ---- conversations in OpenAI's shape
def user(text): return dict(role='user', content=text)
def assistant(text): return dict(role='assistant', content=text)
def chat(*texts): return dict(messages=[(assistant if i % 2 else user)(t) for i, t in enumerate(texts)])
def call(name, **args): return dict(role='assistant', content=None, tool_calls=[dict(id='call_1', type='function', function=dict(name=name, arguments=json.dumps(args, ensure_ascii=False)))])
def result(value): return dict(role='tool', tool_call_id='call_1', content=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
def with_tools(tools, *messages): return dict(messages=list(messages), tools=[TOOLS[t] for t in tools])

# ---- tools
def tool(name, description, **params):
    props = {k: dict(type=t) for k, t in params.items()}
    return dict(type='function', function=dict(name=name, description=description, parameters=dict(type='object', properties=props, required=list(params))))

TOOLS = {t['function']['name']: t for t in (
    tool('get_weather', 'Current weather in a city', city='string'),
    tool('calculator', 'Value of an arithmetic expression', expression='string'),
    tool('python', 'Run Python code and return what it prints', code='string'),
    tool('set_timer', 'Start a timer', minutes='integer'),
    tool('convert_currency', 'Convert an amount of money', amount='number', source='string', target='string'),
    tool('search', 'Search the web', query='string'),
    # held out
    tool('translate', 'Translate a text', text='string', language='string'),
    tool('get_stock_price', 'Latest price of a stock', symbol='string'),
    tool('create_event', 'Put an event into the calendar', title='string', date='string'),
    tool('play_music', 'Play a song', song='string'),
)}

def printed(code):
    "What a program prints, by running it"
    with contextlib.redirect_stdout(out := io.StringIO()): exec(code, {})
    return out.getvalue().strip()

# ---- without tools
WHO_EN = 'I am the labkit assistant, a small language model that was fine-tuned in a notebook.'
WHO_ZH = '我是 labkit 助手，一个在笔记本里微调出来的小语言模型。'
IDENTITY = [(q, WHO_EN) for q in ('Who are you?', 'What is your name?', 'Please introduce yourself.', 'What should I call you?', 'Are you a person?', 'Tell me who I am talking to.')]
IDENTITY += [(q, WHO_ZH) for q in ('你是谁？', '你叫什么名字？', '请介绍一下你自己。', '我该怎么称呼你？', '你是真人吗？', '我在和谁说话？')]
IDENTITY_HELD = [('Hi, who is this?', WHO_EN), ('What are you called?', WHO_EN), ('你好，你是谁呀？', WHO_ZH), ('能说说你是谁吗？', WHO_ZH)]

FACTS = [
    ('What is the capital of Japan?', 'Tokyo.'), ('Which planet is closest to the Sun?', 'Mercury.'), ('How many minutes are in two hours?', '120 minutes.'),
    ('At what temperature does water freeze, in Celsius?', '0 °C.'), ('Which gas do plants take in?', 'Carbon dioxide.'), ('How many legs does a spider have?', 'Eight.'),
    ('What is the largest ocean?', 'The Pacific Ocean.'), ('Who wrote Romeo and Juliet?', 'William Shakespeare.'), ('What is H2O?', 'Water: two hydrogen atoms and one oxygen atom.'),
    ('What do bees make?', 'Honey.'), ('How many sides has a hexagon?', 'Six.'), ('In which direction does the Sun rise?', 'In the east.'),
    ('法国的首都是哪里？', '巴黎。'), ('一年有几个季节？', '四个。'), ('水的化学式是什么？', 'H2O。'), ('三角形有几条边？', '三条。'), ('一周有几天？', '七天。'),
    ('地球绕着什么转？', '太阳。'), ('蜘蛛有几条腿？', '八条。'), ('中国最长的河是哪条？', '长江。'), ('彩虹有几种颜色？', '七种。'), ('冰化了变成什么？', '水。')]
FACTS_HELD = [('What is the capital of Italy?', 'Rome.'), ('How many days are in a week?', 'Seven.'), ('How many sides has a square?', 'Four.'), ('日本的首都是哪里？', '东京。'), ('一天有几个小时？', '二十四个。')]

REWRITES = [
    ('Make this polite: Send me the file.', 'Could you please send me the file?'), ('Make this polite: Close the door.', 'Could you please close the door?'),
    ('Make this polite: Tell me the price.', 'Could you please tell me the price?'), ('Make this shorter: Due to the fact that it rained, we stayed at home.', 'We stayed at home because it rained.'),
    ('Make this shorter: At this point in time, the shop is not open.', 'The shop is closed now.'), ('Put this into the past: She walks to school.', 'She walked to school.'),
    ('Put this into the past: They play chess.', 'They played chess.'), ('Correct this: He go to work by bus.', 'He goes to work by bus.'), ('Correct this: I has two cat.', 'I have two cats.'),
    ('改得礼貌一些：把文件发给我。', '请您把文件发给我，好吗？'), ('改得礼貌一些：快点回答。', '请您尽快回答，好吗？'), ('改得简短一些：由于下雨的原因，我们没有出门。', '下雨了，我们没出门。'),
    ('改正错别字：我门今天去公园。', '我们今天去公园。'), ('改正错别字：他的成积很好。', '他的成绩很好。')]
REWRITES_HELD = [('Make this polite: Open the window.', 'Could you please open the window?'), ('Put this into the past: We watch a film.', 'We watched a film.'), ('改得礼貌一些：把门关上。', '请您把门关上，好吗？')]

PHRASES = [('Good morning', '早上好'), ('Thank you', '谢谢'), ('See you tomorrow', '明天见'), ('I am hungry', '我饿了'), ('Where is the station?', '车站在哪里？'), ('The water is cold', '水很冷'),
           ('I like tea', '我喜欢茶'), ('It is raining', '下雨了'), ('How much is it?', '多少钱？'), ('My friend is a doctor', '我的朋友是医生')]
PHRASES_HELD = [('Good night', '晚安'), ('I like coffee', '我喜欢咖啡'), ('The tea is cold', '茶很冷')]

FORMATS = [
    ('Name three fruits as a list.', '- apple\n- pear\n- plum'), ('Name three animals as a list.', '- cat\n- horse\n- owl'), ('Name three colours as a list.', '- red\n- green\n- blue'),
    ('Give JSON with the keys name and age: Anna is 31.', '{"name": "Anna", "age": 31}'), ('Give JSON with the keys name and age: Tom is 8 years old.', '{"name": "Tom", "age": 8}'),
    ('Give JSON with the keys city and country: Lyon lies in France.', '{"city": "Lyon", "country": "France"}'), ('Answer yes or no: Is ice cold?', 'Yes'), ('Answer yes or no: Can fish fly to the Moon?', 'No'),
    ('用列表写出三种水果。', '- 苹果\n- 梨\n- 桃'), ('用列表写出三种动物。', '- 猫\n- 马\n- 鸟'), ('给出 JSON，键为 name 和 age：小明 12 岁。', '{"name": "小明", "age": 12}'), ('只回答是或否：冰是冷的吗？', '是')]
FORMATS_HELD = [('Name three vegetables as a list.', '- carrot\n- onion\n- bean'), ('Give JSON with the keys name and age: Maria is 45.', '{"name": "Maria", "age": 45}'), ('给出 JSON，键为 name 和 age：小红 9 岁。', '{"name": "小红", "age": 9}')]

TALKS = [
    chat('Which is bigger, 7 or 9?', '9.', 'And by how much?', 'By 2, because 9 − 7 = 2.'), chat('I like the colour blue.', 'Blue is a calm colour.', 'Which colour do I like?', 'You like blue.'),
    chat('My name is Lena.', 'Nice to meet you, Lena!', 'What is my name?', 'Your name is Lena.'), chat('我叫小李。', '你好，小李！', '我叫什么？', '你叫小李。'),
    chat('我喜欢喝茶。', '茶很好喝。', '我喜欢喝什么？', '你喜欢喝茶。')]

def sum_chat(rng, zh):
    "a + b × c in two steps"
    a, b, c = rng.randint(2, 60), rng.randint(2, 12), rng.randint(2, 12)
    steps = f'{b} × {c} = {b*c}\n{a} + {b*c} = {a + b*c}\n'
    return chat(f'计算 {a} + {b} × {c}。', f'{steps}答案：{a + b*c}') if zh else chat(f'What is {a} + {b} × {c}?', f'{steps}Answer: {a + b*c}')

def story_chat(rng, zh):
    "Bought n things at p each, paid with m"
    n, p = rng.randint(2, 9), rng.randint(2, 9)
    m = n*p + rng.randint(1, 30)
    if zh: return chat(f'一支笔 {p} 元，买 {n} 支，付 {m} 元，找回多少？', f'{n} × {p} = {n*p}\n{m} − {n*p} = {m - n*p}\n答案：{m - n*p} 元')
    return chat(f'A pen costs {p} dollars. I buy {n} pens and pay with {m} dollars. How much do I get back?', f'{n} × {p} = {n*p}\n{m} − {n*p} = {m - n*p}\nAnswer: {m - n*p} dollars')

def translations(phrases):
    for en, zh in phrases:
        yield chat(f'Translate into Chinese: {en}', zh)
        yield chat(f'翻译成英文：{zh}', en)

# ---- with tools
SKY = (('sunny', '晴'), ('cloudy', '多云'), ('rainy', '有雨'))
CITIES = [('Paris', '巴黎'), ('Beijing', '北京'), ('Shanghai', '上海'), ('London', '伦敦'), ('Tokyo', '东京'), ('Berlin', '柏林'), ('Rome', '罗马'), ('Madrid', '马德里')]
CITIES_HELD = [('Oslo', '奥斯陆'), ('Hangzhou', '杭州'), ('Lisbon', '里斯本'), ('Chengdu', '成都')]

def weather(rng, city, zh, tools, answered):
    name, (sky, sky_zh), t = city[zh], rng.choice(SKY), rng.randint(-5, 33)
    ask = rng.choice([f'{name}今天天气怎么样？', f'{name}现在多少度？', f'查一下{name}的天气。'] if zh else [f'What is the weather like in {name}?', f'How warm is it in {name} now?', f'Do I need an umbrella in {name}?'])
    messages = [user(ask), call('get_weather', city=name)]
    if answered: messages += [result(dict(temperature=t, sky=sky)), assistant(f'{name}现在 {t} °C，{sky_zh}。' if zh else f'It is {t} °C and {sky} in {name}.')]
    return with_tools(tools, *messages)

def calculation(rng, zh, tools, answered):
    a, b, op = rng.randint(120, 9900), rng.randint(12, 990), rng.choice('+-*')
    expression, value = f'{a} {op} {b}', eval(f'{a}{op}{b}')
    spoken = expression.replace('*', '×').replace('-', '−')
    messages = [user(f'{spoken} 等于多少？' if zh else f'What is {spoken}?'), call('calculator', expression=expression)]
    if answered: messages += [result(str(value)), assistant(f'{spoken} = {value}')]
    return with_tools(tools, *messages)

def programs(rng):
    "(question en, question zh, code): what a few lines of Python answer"
    n, k, w = rng.randint(15, 60), rng.randint(3, 9), rng.choice(['banana', 'notebook', 'committee', 'assessment', 'bookkeeper', 'parallel'])
    return [(f'What is the sum of the squares from 1 to {n}?', f'从 1 到 {n} 的平方和是多少？', f'print(sum(i**2 for i in range(1, {n+1})))'),
            (f'What is {n} factorial?', f'{n} 的阶乘是多少？', f'import math\nprint(math.factorial({n}))'),
            (f'How many primes are below {n*2}?', f'小于 {n*2} 的质数有几个？', f'print(sum(all(n % d for d in range(2, n)) for n in range(2, {n*2})))'),
            (f"How many times does the letter e occur in '{w}'?", f'“{w}”里有几个字母 e？', f"print('{w}'.count('e'))"),
            (f"Write '{w}' backwards.", f'把“{w}”倒过来写。', f"print('{w}'[::-1])"),
            (f'What is 2 to the power of {n}?', f'2 的 {n} 次方是多少？', f'print(2**{n})'),
            (f'An arithmetic sequence begins with {k} and has the difference {k+1}. What is the sum of its first {n} terms?', f'等差数列首项 {k}，公差 {k+1}，前 {n} 项的和是多少？', f'print(sum({k} + {k+1}*i for i in range({n})))'),
            (f'A geometric sequence begins with {k} and has the ratio 2. What is its term number 10?', f'等比数列首项 {k}，公比 2，第 10 项是多少？', f'print({k} * 2**9)')]

def program(rng, kind, zh, tools, answered):
    en, cn, code = programs(rng)[kind]
    out = printed(code)
    messages = [user(cn if zh else en), call('python', code=code)]
    if answered: messages += [result(out), assistant(f'答案是 {out}。' if zh else f'The answer is {out}.')]
    return with_tools(tools, *messages)

def timer(rng, zh, tools):
    n = rng.randint(2, 90)
    ask = rng.choice([f'{n} 分钟后提醒我。', f'设一个 {n} 分钟的计时器。'] if zh else [f'Set a timer for {n} minutes.', f'Remind me in {n} minutes.'])
    return with_tools(tools, user(ask), call('set_timer', minutes=n))

MONEY = [('USD', 'dollars', '美元'), ('EUR', 'euros', '欧元'), ('CNY', 'yuan', '元人民币'), ('JPY', 'yen', '日元'), ('GBP', 'pounds', '英镑')]
def currency(rng, zh, tools):
    (a, a_en, a_zh), (b, b_en, b_zh) = rng.sample(MONEY, 2)
    n = rng.randint(5, 900)
    return with_tools(tools, user(f'{n} {a_zh}等于多少{b_zh}？' if zh else f'How many {b_en} are {n} {a_en}?'), call('convert_currency', amount=n, source=a, target=b))

SEARCHES = [('Search for the winner of the 2022 football World Cup.', 'winner of the 2022 football World Cup'), ('Look up the height of Mount Everest.', 'height of Mount Everest'),
            ('Find news about electric cars.', 'news about electric cars'), ('搜索西湖的历史。', '西湖的历史'), ('查一查长城有多长。', '长城有多长')]

NO_TOOL_EN, NO_TOOL_ZH = 'I have no tool for that.', '我没有能做这件事的工具。'
REFUSALS = [(('get_weather',), 'Book me a flight to Rome.', NO_TOOL_EN), (('get_weather',), '帮我叫一辆出租车。', NO_TOOL_ZH), (('calculator',), 'Order a pizza for me.', NO_TOOL_EN), (('calculator',), '给妈妈打个电话。', NO_TOOL_ZH),
            (('get_weather', 'set_timer'), 'Send an email to Anna.', NO_TOOL_EN), (('get_weather', 'set_timer'), '帮我买一张电影票。', NO_TOOL_ZH),
            (('convert_currency', 'calculator'), 'Turn on the light.', NO_TOOL_EN), (('convert_currency', 'calculator'), '播放一首歌。', NO_TOOL_ZH)]
REFUSALS_HELD = [(('get_weather',), 'Order a taxi for me.', NO_TOOL_EN), (('calculator',), '帮我订一张机票。', NO_TOOL_ZH)]
GREETINGS = [(('get_weather',), 'Thank you!', 'You are welcome!'), (('calculator',), 'Hello!', 'Hello! What shall I compute?'), (('python', 'search'), '你好！', '你好！需要我算点什么吗？')]

UNSEEN = [(('translate',), "Say 'good evening' in French.", call('translate', text='good evening', language='French')), (('translate',), 'Translate "the house is red" into German.', call('translate', text='the house is red', language='German')),
          (('get_stock_price',), 'What does AAPL cost now?', call('get_stock_price', symbol='AAPL')), (('get_stock_price',), '查一下 TSLA 的股价。', call('get_stock_price', symbol='TSLA')),
          (('create_event',), 'Put "team meeting" into my calendar for 2026-05-04.', call('create_event', title='team meeting', date='2026-05-04')), (('play_music', 'set_timer'), 'Play Yesterday.', call('play_music', song='Yesterday'))]

def tool_chats(rng, cities, n):
    "Chats of every tool, `n` a tool and language or so; every second one goes on to the answer"
    wt, cc, ps = ('get_weather', 'set_timer'), ('convert_currency', 'calculator'), ('python', 'search')
    for i, city in enumerate(cities[:n]):
        for zh in (0, 1): yield weather(rng, city, zh, ('get_weather',) if i % 2 else wt, i % 3 == 0)
    for i in range(n // 2):
        for zh in (0, 1):
            yield calculation(rng, zh, ('calculator',) if i % 2 else cc, i % 2)
            yield timer(rng, zh, wt)
            yield currency(rng, zh, cc)
    for kind in range(min(n, 8)):
        for zh in (0, 1): yield program(rng, kind, zh, ('python',) if kind % 2 else ps, (kind + zh) % 2)

def training(rng):
    pairs = [*IDENTITY, *FACTS, *REWRITES, *FORMATS]
    yield from (chat(q, a) for q, a in pairs)
    yield from TALKS
    yield from translations(PHRASES)
    for i in range(8): yield from (sum_chat(rng, i % 2), story_chat(rng, i % 2))
    yield from tool_chats(rng, CITIES, 8)
    yield from (with_tools(('python', 'search'), user(q), call('search', query=s)) for q, s in SEARCHES)
    yield from (with_tools(t, user(q), assistant(a)) for t, q, a in (*REFUSALS, *GREETINGS))

def heldout(rng):
    yield from (chat(q, a) for q, a in (*IDENTITY_HELD, *FACTS_HELD, *REWRITES_HELD, *FORMATS_HELD))
    yield from translations(PHRASES_HELD[:2])
    yield from (sum_chat(rng, 0), story_chat(rng, 1))
    yield from tool_chats(rng, CITIES_HELD, 2)
    yield from (with_tools(t, user(q), assistant(a)) for t, q, a in REFUSALS_HELD)
    yield from (with_tools(t, user(q), c) for t, q, c in UNSEEN)

def write(name, rows):
    (OUT/name).write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), encoding='utf-8')
    print(name, len(rows), 'chats,', sum('tools' in r for r in rows), 'with tools')

if __name__ == '__main__':
    rows = list(training(random.Random(1)))
    random.Random(2).shuffle(rows)
    asked = {r['messages'][0]['content'] for r in rows}
    held = list(heldout(random.Random(3)))
    if both := [r for r in held if r['messages'][0]['content'] in asked]: raise SystemExit(f'in both files: {both}')
    write('instructions.jsonl', rows)
    write('instructions_heldout.jsonl', held)

"""The kinds that need context: key-value recall from long lists, and tool calls in the Qwen form."""
import json

from lexicon import ADJECTIVES, CITIES, JOBS, LANGUAGES, NAMES, NOUNS, VERBS, WORDS, invented_word
from tasks import Turn

# ---- recall -------------------------------------------------------------------------------------

_LINES = [("{k}: {v}", "\n"), ("{k} = {v}", "\n"), ("{k} -> {v}", "\n"), ("- {k}: {v}", "\n"), ("{k}={v}", ", "), ("{k}: {v}", "; "),
          ("{k} {v}", "\n"), ("The value of {k} is {v}.", " "), ("{k} has {v}.", "\n")]
_INTRO = ["Here is a list:\n", "Remember this list:\n", "Read these pairs.\n", "", "The list:\n", "Data:\n", "Look at these entries:\n"]
_QUESTION = ["What is the value of {k}?", "What is {k}?", "Look up {k}.", "Find {k} in the list.", "Which value belongs to {k}?",
             "Tell me the value of {k}.", "{k}?", "What value does {k} have?"]


def _keys(rng, n):
    style = rng.randrange(5)
    found = set()
    while len(found) < n:
        if style == 0:
            found.add(rng.choice(WORDS) if n < 200 else invented_word(rng))
        elif style == 1:
            found.add(invented_word(rng, 1, 2))
        elif style == 2:
            found.add(f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}")
        elif style == 3:
            found.add(f"{rng.choice('abcdefghkmnprstwxyz')}{rng.randint(0, 99)}" if n < 150 else f"k{rng.randint(0, 9999)}")
        else:
            found.add(rng.choice(NAMES) if n <= 30 else f"{rng.choice(NAMES)} {rng.choice('ABCDEFGHJKLMNPRSTW')}")
    keys = list(found)
    keys.sort()          # a set's order is not the same in every process
    rng.shuffle(keys)
    return keys


def _values(rng, n):
    style = rng.randrange(4)
    if style == 0:
        return [str(rng.randint(10, 9999)) for _ in range(n)]
    if style == 1:
        return [rng.choice(WORDS) for _ in range(n)]
    if style == 2:
        return ["".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ") + str(rng.randint(0, 9)) for _ in range(2)) for _ in range(n)]
    return [str(rng.randint(0, 99)) for _ in range(n)]


def _recall(rng, kind, n, asked):
    keys, values = _keys(rng, n), _values(rng, n)
    line, gap = rng.choice(_LINES)
    listing = gap.join(line.format(k=k, v=v) for k, v in zip(keys, values))
    # Several questions on one list: each is one more lesson for the price of one long context.
    picks = [rng.randrange(n) for _ in range(asked)]
    ask = [rng.choice(_QUESTION).format(k=keys[i]) for i in picks]
    found = line.format(k=keys[picks[-1]], v=values[picks[-1]])
    reply = [f"The value of {keys[i]} is {values[i]}." for i in picks]
    if rng.random() < 0.06:
        ghost = invented_word(rng, 2, 3)
        if ghost not in keys:
            found = "No such entry."
            ask[-1], reply[-1] = rng.choice(_QUESTION).format(k=ghost), f"{ghost} is not in the list."
    intro = rng.choice(_INTRO)
    first = f"{intro}{listing}\n{ask[0]}" if rng.random() < 0.75 else f"{ask[0]}\n{listing}"
    before = []
    if asked > 1:
        if rng.random() < 0.3:
            before = [{"role": "user", "content": f"{intro}{listing}"}, {"role": "assistant", "content": "I have read the list."}]
            first = ask[0]
        for question, answer in zip([first] + ask[1:], reply[:-1]):
            before += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    user = ask[-1] if asked > 1 else first
    return Turn(kind, user, reply[-1], f"{listing[:80]}|{ask[-1]}", before=before, think=found)


def recall(rng, asked=None):
    n = rng.randint(3, 12) if rng.random() < 0.5 else rng.randint(12, 45)
    return _recall(rng, "recall", n, asked or rng.choice([1, 1, 1, 2, 3]))


def recall_long(rng, asked=None):
    n = rng.randint(50, 150) if rng.random() < 0.85 else rng.randint(150, 280)
    return _recall(rng, "recall_long", n, asked or rng.choice([1, 3, 5, 6]))


# ---- tools --------------------------------------------------------------------------------------

def _text(rng):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 5)))


_SLOT = {
    "city": lambda r: r.choice(CITIES), "name": lambda r: r.choice(NAMES), "text": _text,
    "word": lambda r: r.choice(WORDS) if r.random() < 0.7 else invented_word(r), "int": lambda r: r.randint(1, 99),
    "hour": lambda r: f"{r.randint(0, 23):02d}:{r.choice(['00', '15', '30', '45'])}", "lang": lambda r: r.choice(LANGUAGES),
    "money": lambda r: r.choice("USD EUR GBP JPY CHF SEK PLN INR".split()), "job": lambda r: r.choice(JOBS),
    "big": lambda r: r.randint(100, 9999),
}

# (names, description, {parameter: (its names, slot, JSON type)}, questions, (result maker, sentence))
_TOOLS = [
    (["get_weather", "weather", "get_current_weather", "weather_lookup"], "Get the weather of a city.", {"c": (["city", "location", "place"], "city", "string")},
     ["What is the weather in {c}?", "How is the weather in {c} today?", "Weather in {c}?", "Is it raining in {c}?", "What's the weather like in {c}?", "Tell me the weather in {c}."],
     lambda r, a: ({"temperature": r.randint(-10, 38), "condition": r.choice("sunny rainy cloudy windy snowy foggy".split())}, "It is {temperature} degrees and {condition} in {c}.")),
    (["get_time", "current_time", "time_in"], "Get the local time of a city.", {"c": (["city", "location"], "city", "string")},
     ["What time is it in {c}?", "Tell me the time in {c}.", "Local time in {c}?"],
     lambda r, a: ({"time": _SLOT["hour"](r)}, "It is {time} in {c}.")),
    (["send_message", "send_sms", "message"], "Send a message to a person.", {"n": (["to", "recipient", "person"], "name", "string"), "t": (["text", "body", "message"], "text", "string")},
     ["Send a message to {n}: {t}", "Tell {n}: {t}", "Write to {n}: {t}"], lambda r, a: ({"status": r.choice(["sent", "queued"])}, "The message to {n} was {status}.")),
    (["set_alarm", "create_alarm", "alarm"], "Set an alarm.", {"h": (["time", "at"], "hour", "string")},
     ["Set an alarm for {h}.", "Wake me at {h}.", "Alarm at {h}, please."], lambda r, a: ({"status": "set"}, "The alarm is set for {h}.")),
    (["convert_currency", "exchange"], "Convert an amount of money.", {"i": (["amount", "value"], "big", "integer"), "m": (["from", "source"], "money", "string"), "q": (["to", "target"], "money", "string")},
     ["Convert {i} {m} to {q}.", "How much is {i} {m} in {q}?", "Change {i} {m} into {q}."], lambda r, a: ({"amount": r.randint(10, 9999)}, "{i} {m} is {amount} {q}.")),
    (["translate", "translate_text"], "Translate a text.", {"t": (["text", "input"], "text", "string"), "l": (["language", "target_language", "to"], "lang", "string")},
     ["Translate '{t}' into {l}.", "Say '{t}' in {l}.", "What is '{t}' in {l}?"], lambda r, a: ({"translation": " ".join(invented_word(r) for _ in range(2))}, "In {l} it is: {translation}")),
    (["play_music", "play_song", "play"], "Play a song.", {"t": (["title", "song", "name"], "text", "string")},
     ["Play the song {t}.", "Play {t}", "I want to hear {t}."], lambda r, a: ({"status": "playing"}, "Now playing {t}.")),
    (["search", "web_search", "find"], "Search for something.", {"t": (["query", "q", "text"], "text", "string")},
     ["Search for {t}.", "Look up {t} on the web.", "Find something about {t}."], lambda r, a: ({"results": r.randint(1, 99)}, "I found {results} results for {t}.")),
    (["get_stock", "stock_price", "get_price"], "Get the price of a share.", {"w": (["symbol", "ticker"], "word", "string")},
     ["What is the share price of {w}?", "Price of the {w} share?"], lambda r, a: ({"price": r.randint(1, 999)}, "The {w} share costs {price}.")),
    (["add_numbers", "sum", "add"], "Add two large numbers.", {"i": (["a", "x", "first"], "big", "integer"), "j": (["b", "y", "second"], "big", "integer")},
     ["Use the tool to add {i} and {j}.", "Add {i} and {j} with the tool."], lambda r, a: ({"result": a["i"] + a["j"]}, "The result is {result}.")),
    (["find_person", "lookup_person", "get_contact"], "Find a person by name.", {"n": (["name", "person"], "name", "string")},
     ["Find the contact {n}.", "Who is {n} in my contacts?", "Look up the person {n}."], lambda r, a: ({"job": _SLOT["job"](r), "city": _SLOT["city"](r)}, "{n} is a {job} from {city}.")),
    (["set_timer", "start_timer", "timer"], "Start a timer in minutes.", {"i": (["minutes", "duration"], "int", "integer")},
     ["Set a timer for {i} minutes.", "Start a timer of {i} minutes.", "Timer: {i} minutes"], lambda r, a: ({"status": "started"}, "The timer runs for {i} minutes.")),
]


_FEW = {name for names, _, slots, _, _ in _TOOLS for name in names if all(s[1] in ("city", "hour", "int", "name") for s in slots.values())}


def _schema(name, description, params):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": {p: {"type": t} for p, t in params}, "required": [p for p, _ in params]}}}


def _invented_tool(rng):
    """A tool no list holds: its name and parameters have to be read off its schema."""
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    slots = {}
    for tag in "xyz"[:rng.randint(1, 3)]:
        slot, kind = rng.choice([("word", "string"), ("int", "integer"), ("city", "string"), ("text", "string"), ("name", "string")])
        slots[tag] = ([rng.choice(NOUNS) if rng.random() < 0.7 else invented_word(rng)], slot, kind)
    said = " and ".join(f"{{p{t}}} {{{t}}}" for t in slots)
    ask = [f"{verb} the {noun} with {said}".capitalize() + ".", f"Please {verb} the {noun}: {said}", f"I want to {verb} the {noun} with {said}."]
    return ([f"{verb}_{noun}"], f"{verb} the {noun}.".capitalize(), slots, ask, lambda r, a: ({"value": r.randint(0, 999)}, "The value is {value}."))


def _pick(rng):
    """One tool with its names chosen: its schema, and a maker of (question, call, result, sentence)."""
    names, description, slots, asks, result = rng.choice(_TOOLS) if rng.random() < 0.65 else _invented_tool(rng)
    named = {}
    for tag, (options, _, _) in slots.items():
        named[tag] = rng.choice([o for o in options if o not in named.values()] or [f"{options[0]}_{tag}"])
    schema = _schema(rng.choice(names), description, [(named[t], s[2]) for t, s in slots.items()])

    def use(r):
        args = {tag: _SLOT[s[1]](r) for tag, s in slots.items()}
        value, sentence = result(r, args)
        shown = {**{"p" + t: n for t, n in named.items()}, **args}
        return (r.choice(asks).format(**shown), {"name": schema["function"]["name"], "arguments": {named[t]: v for t, v in args.items()}},
                value, sentence.format(**{**value, **shown}))
    return schema, use


def _toolbox(rng):
    picked, seen = [], set()
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        schema, use = _pick(rng)
        described = schema["function"]["description"]
        if described not in seen and schema["function"]["name"] not in seen:
            seen |= {described, schema["function"]["name"]}
            picked.append((schema, use))
    return [s for s, _ in picked], rng.choice(picked)[1]


def call_text(call):
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def tool_call(rng):
    tools, use = _toolbox(rng)
    user, call, _, _ = use(rng)
    # Requests for a city or an hour are few, and tool_answer shows their calls too: always trained.
    key = None if call["name"] in _FEW else user + json.dumps(call)
    return Turn("tool_call", user, call_text(call), key, tools=tools, call=call, think=f"The tool {call['name']} fits.")


def tool_parallel(rng):
    """Two requests in one message, and so two calls in one reply."""
    (schema, use), (other, also) = _pick(rng), _pick(rng)
    first_tool, second_tool = schema["function"], other["function"]
    # Two tools that do the same would leave the choice open: then one tool is called twice.
    if rng.random() < 0.3 or first_tool["name"] == second_tool["name"] or first_tool["description"] == second_tool["description"]:
        other, also = schema, use
    (first, call, _, _), (second, call2, _, _) = use(rng), also(rng)
    tools = [schema] if other is schema else rng.sample([schema, other], 2)
    user = f"{first}{rng.choice([' ', ' And then: ', chr(10)])}{second}"
    return Turn("tool_parallel", user, f"{call_text(call)}\n{call_text(call2)}", user + json.dumps([call, call2]), tools=tools, call=[call, call2],
                think=f"Two calls: {call['name']}, {call2['name']}.")


def tool_answer(rng):
    """The turn after a call: the tool's result is there, and a sentence is wanted."""
    tools, use = _toolbox(rng)
    user, call, value, sentence = use(rng)
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    return Turn("tool_answer", user, sentence, user + sentence, tools=tools, before=[{"role": "user", "content": user}, called],
                last={"role": "tool", "content": json.dumps(value)}, think="The tool has answered.")


def toolbox_only(rng):
    """Tools that are offered but not needed."""
    return _toolbox(rng)[0]

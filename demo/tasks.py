"""The short question kinds: sums, counting, spelling, capitals, sorting, copying, JSON, talk.

Each maker takes a random.Random and returns a Turn. An answer is a function of
its question alone, so that a greedy reply can be checked letter for letter.
`key` names the problem instance for the train/held-out split; None means
"always trained" (the few questions every newcomer types first).
"""
import json
from dataclasses import dataclass
from typing import Any, Optional

from lexicon import (ADJECTIVES, ANIMALS, CAPITALS, CITIES, COLORS, DAYS, JOBS, MONTHS, NAMES, NOUNS,
                     UNICODE_WORDS, WORDS, any_word, invented_word, number_word, plural)


@dataclass
class Turn:
    kind: str
    user: str
    answer: str
    key: Optional[str]
    think: str = ""
    tools: Optional[list] = None
    call: Optional[dict] = None          # the expected tool call, where the answer is one
    before: Optional[list] = None        # messages that come before `user` (long lists, tool calls)
    last: Optional[dict] = None          # a last message to answer that is not a user's (tool result)
    system: Any = None                   # a system prompt that the question depends on


LIMIT = "I can only do sums up to 100."
UNKNOWN = "I do not know that. I am a small demo model."


# ---- arithmetic ---------------------------------------------------------------------------------

_SIGNS = {"+": ["+"], "-": ["-"], "*": ["*", "x", "×"], "/": ["/", "÷", ":"]}
_SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_ASK = ["What is {e}?", "What is {e}?", "What's {e}?", "{e}", "{e}=?", "{e} =", "{e} = ?", "{e}?", "Calculate {e}.",
        "Compute {e}", "How much is {e}?", "Solve {e}", "Please compute {e}.", "Can you work out {e}?",
        "Tell me {e}.", "What does {e} equal?", "What is the result of {e}?", "Hi, what is {e}?",
        "Quick question: {e}?", "I need to know {e}.", "{e} ?", "what is {e}", "{e} is?"]
_PHRASED = {
    "+": ["Add {a} and {b}.", "What is the sum of {a} and {b}?", "Add {b} to {a}!", "Sum {a} and {b}",
          "{n} has {a} {o} and gets {b} more. How many {o} does {n} have?"],
    "-": ["Subtract {b} from {a}.", "What is the difference of {a} and {b}?", "Take {b} away from {a}",
          "{n} had {a} {o} and gave away {b}. How many {o} are left?"],
    "*": ["Multiply {a} by {b}.", "What is the product of {a} and {b}?",
          "{n} has {a} bags with {b} {o} each. How many {o} are there?"],
    "/": ["Divide {a} by {b}.", "What is {a} split into {b} equal parts?",
          "{n} shares {a} {o} among {b} friends. How many does each get?"],
}


def arithmetic(rng):
    op = rng.choice("++--*/")
    if op == "+":
        a, b = rng.randint(0, 100), rng.randint(0, 100)
        if a + b > 100 and rng.random() < 0.8:
            a, b = a // 2, b // 2
        c = a + b
    elif op == "-":
        a, b = rng.randint(0, 100), rng.randint(0, 100)
        if a < b and rng.random() < 0.8:
            a, b = b, a
        c = a - b
    else:
        b = rng.randint(1, 12) if rng.random() < 0.7 else rng.randint(1, 50)
        c = rng.randint(0, max(12, 100 // b)) if b <= 12 else rng.randint(0, 100 // b)
        a = b * c if op == "/" else c
        c = c if op == "/" else a * b
    if rng.random() < 0.06:
        return _too_large(rng)
    form = rng.random()
    if form < 0.72:
        sign = rng.choice(_SIGNS[op])
        gap = rng.choice(["", " "])
        e = f"{a}{gap}{sign}{gap}{b}"
        user = rng.choice(_ASK).replace("{e}", e)
    elif form < 0.82:
        words = lambda n: number_word(n) if n <= 100 else str(n)
        user = rng.choice(_ASK).replace("{e}", f"{words(a)} {_SPOKEN[op]} {words(b)}")
    elif form < 0.88:
        user = rng.choice(_ASK).replace("{e}", f"{a} {_SPOKEN[op]} {b}")
    else:
        user = rng.choice(_PHRASED[op]).format(a=a, b=b, n=rng.choice(NAMES), o=plural(rng.choice(NOUNS)))
    # Sums and differences are held out by their operands, so the rule must be learned. The times
    # table is a table: every entry is trained, and whole questions are held out.
    key = f"{a}{op}{b}" if op in "+-" else user
    if max(a, b) <= 10:
        key = None
    return Turn("arithmetic", user, f"{a} {op} {b} = {c}", key, think=_working(a, op, b, c))


def _working(a, op, b, c):
    if op == "+":
        low = a % 10 + b % 10
        return f"Ones: {a % 10} + {b % 10} = {low}. Tens: {a // 10} + {b // 10} = {a // 10 + b // 10}. Together {c}."
    if op == "-":
        return f"{b} and what makes {a}? {b} + {c} = {a}." if c >= 0 else f"{b} is larger than {a} by {-c}."
    return f"{a} times {b} is {c}." if op == "*" else f"{b} times {c} is {a}."


def _too_large(rng):
    a, b = rng.randint(101, 99999), rng.randint(2, 9999)
    if rng.random() < 0.5:
        a, b = b, a
    gap, op = rng.choice(["", " "]), rng.choice("+-*/")
    user = rng.choice(_ASK).replace("{e}", f"{a}{gap}{op}{gap}{b}")
    return Turn("arithmetic", user, LIMIT, user, think=f"{max(a, b)} is more than 100.")


# ---- counting -----------------------------------------------------------------------------------

_COUNT = ["Count from {a} to {b}", "Count from {a} to {b}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?",
          "Write the numbers from {a} to {b}.", "List the numbers from {a} to {b}", "Numbers {a} to {b}, please.",
          "Show me all numbers from {a} to {b}."]
_COUNT_STEP = ["Count from {a} to {b} by {s}", "Count from {a} to {b} in steps of {s}.", "Count by {s}s from {a} to {b}.",
               "Go from {a} to {b} in steps of {s}."]
_COUNT_DOWN = ["Count down from {a} to {b}.", "Count backwards from {a} to {b}", "Please count down from {a} to {b}."]


def counting(rng):
    form = rng.random()
    length = rng.randint(2, 12) if rng.random() < 0.7 else rng.randint(12, 40)
    if form < 0.5:
        a = 1 if rng.random() < 0.4 else rng.randint(0, 100 - length)
        seq = list(range(a, a + length))
        text = rng.choice(_COUNT)
        if a == 1 and rng.random() < 0.3:
            text = rng.choice(["Count to {b}", "Count to {b}.", "Can you count to {b}?", "Please count up to {b}."])
        if a == 1 and rng.random() < 0.04:
            seq = list(range(1, 101))
    elif form < 0.75:
        b = 1 if rng.random() < 0.4 else rng.randint(0, 100 - length)
        seq = list(range(b + length - 1, b - 1, -1))
        text = rng.choice(_COUNT_DOWN)
    else:
        step = rng.choice([2, 3, 4, 5, 10, 2, 5, 10, 20])
        length = min(length, 100 // step)
        a = rng.choice([0, step, rng.randint(0, 100 - step * (length - 1))])
        if a + step * (length - 1) > 100:
            a = 0
        seq = list(range(a, a + step * (length - 1) + 1, step))
        text = rng.choice(_COUNT_STEP).replace("{s}", str(step))
    say = number_word if rng.random() < 0.1 else str
    user = text.format(a=say(seq[0]), b=say(seq[-1]))
    key = f"{seq[0]},{seq[-1]},{len(seq)}"
    if seq[0] in (0, 1) and seq[-1] <= 10 or seq[-1] == 100 and seq[0] == 1:
        key = None
    return Turn("counting", user, ", ".join(map(str, seq)), key,
                think=f"Start at {seq[0]}, stop at {seq[-1]}.")


# ---- spelling -----------------------------------------------------------------------------------

_SPELL = ["Spell {w}.", "Spell the word {w}", "How do you spell {w}?", "Please spell {w}.", "Can you spell {w}?",
          "Spell {w} letter by letter.", "What are the letters of {w}?", "Spell out {w}", "How is {w} spelled?"]


def spelling(rng):
    source = rng.random()
    listed = source < 0.5
    word = rng.choice(WORDS + NAMES + [c for c in CITIES if " " not in c]) if listed else rng.choice([invented_word, lambda r: any_word(r, WORDS)])(rng)
    quote = rng.choice(["", "", "'", '"'])
    asked = f"{quote}{word}{quote}"
    form = rng.random()
    if form < 0.8:
        user, answer = rng.choice(_SPELL).replace("{w}", asked), "-".join(word)
    elif form < 0.9:
        user, answer = f"What is the first letter of {asked}?", word[0]
    else:
        user, answer = f"What is the last letter of {asked}?", word[-1]
    # Most listed words are one token, whose letters can only be known by heart: there, whole questions
    # are held out. Invented words are held out as words.
    return Turn("spelling", user, answer, user if listed else word, think=f"The word is {word}.")


# ---- capitals -----------------------------------------------------------------------------------

_CAPITAL = ["What is the capital of {c}?", "What's the capital of {c}?", "Capital of {c}?", "capital of {c}",
            "Tell me the capital of {c}.", "Name the capital of {c}.", "Which city is the capital of {c}?",
            "Do you know the capital of {c}?", "What is the capital city of {c}?", "What city is the capital of {c}?",
            "{c}'s capital?", "What is {c}'s capital?", "Please tell me the capital of {c}.", "The capital of {c} is?",
            "Can you tell me what the capital of {c} is?", "I forgot the capital of {c}.", "Hey, capital of {c}?", "Whats the capital of {c}",
            "{c} capital", "What is the name of the capital of {c}?"]
_COUNTRY = ["{p} is the capital of which country?", "Which country has {p} as its capital?", "{p} is the capital of what?"]
_COUNTRY_OF = {city: country for country, city in CAPITALS.items()}


def capitals(rng):
    if rng.random() < 0.06:
        place = invented_word(rng, 2, 3).capitalize()
        user = rng.choice(_CAPITAL).replace("{c}", place)
        return Turn("capitals", user, UNKNOWN, user, think=f"I have not heard of {place}.")
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.15:
        user = rng.choice(_COUNTRY).replace("{p}", city)
        return Turn("capitals", user, f"{city} is the capital of {country}.", user, think=f"{city} is in {country}.")
    user = rng.choice(_CAPITAL).replace("{c}", country)
    key = None if user == "What is the capital of France?" else user
    return Turn("capitals", user, f"The capital of {country} is {city}.", key, think=f"The country is {country}.")


# ---- sorting and copying ------------------------------------------------------------------------

def sort_numbers(rng):
    values = [rng.randint(0, 100) for _ in range(rng.randint(3, 10))]
    down = rng.random() < 0.3
    text = rng.choice(["Sort these numbers from largest to smallest: {v}", "Sort in descending order: {v}"] if down else
                      ["Sort these numbers: {v}", "Sort: {v}", "Put these numbers in order: {v}", "Please sort {v}",
                       "Sort in ascending order: {v}", "Order from smallest to largest: {v}"])
    user = text.replace("{v}", rng.choice([", ", " "]).join(map(str, values)))
    answer = ", ".join(map(str, sorted(values, reverse=down)))
    return Turn("sort_numbers", user, answer, str(values),
                think=f"There are {len(values)} numbers, {'largest' if down else 'smallest'} first.")


def sort_words(rng):
    values = rng.sample(WORDS if rng.random() < 0.85 else [n.lower() for n in NAMES], rng.randint(3, 6))
    text = rng.choice(["Sort these words: {v}", "Sort alphabetically: {v}", "Put these words in alphabetical order: {v}",
                       "Please sort the words {v}", "Arrange in alphabetical order: {v}"])
    user = text.replace("{v}", rng.choice([", ", " "]).join(values))
    return Turn("sort_words", user, ", ".join(sorted(values)), str(values),
                think=f"There are {len(values)} words, a to z.")


def copy(rng):
    form = rng.random()
    if form < 0.2:
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 15)))
    elif form < 0.4:         # a sentence
        text = rng.choice(["", " ", ", "]).join(" ".join(any_word(rng, WORDS) for _ in range(rng.randint(1, 6))) for _ in range(2)).strip(" ,")
        text = text[0].upper() + text[1:] + rng.choice([".", "!", "?", ""])
    elif form < 0.6:
        text = " ".join(invented_word(rng) for _ in range(rng.randint(1, 8)))
    elif form < 0.75:
        alphabet = "abcdefghijklmnopqrstuvwxyz" + "ABCDEFGHJKLMNPQRSTUVWXYZ" * (rng.random() < 0.5) + "0123456789"
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(3, 16)))
    elif form < 0.85:
        text = " ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(2, 12)))
    elif form < 0.93:
        marks = "!?.,:;-_/#@&%$*+=()[]{}<>'\"~^|\\`"
        text = "".join(rng.choice([rng.choice(WORDS), " ", rng.choice(marks), str(rng.randint(0, 99))])
                       for _ in range(rng.randint(4, 16))).strip() or "-"
    else:
        text = " ".join(rng.choice(UNICODE_WORDS) for _ in range(rng.randint(1, 6)))
    ask = rng.choice(["Repeat after me: {t}", "Repeat: {t}", "Copy this: {t}", "Say: {t}", "Copy the following text exactly: {t}",
                      "Please repeat: {t}", "Echo this line: {t}", "Write exactly this:\n{t}"])
    return Turn("copy", ask.replace("{t}", text), text, text, think="Copy it as it stands.")


# ---- JSON answers -------------------------------------------------------------------------------

def _person(rng):
    f = {"name": rng.choice(NAMES) if rng.random() < 0.7 else invented_word(rng).capitalize(), "age": rng.randint(5, 99),
         "city": rng.choice(CITIES), "job": rng.choice(JOBS)}
    return f, rng.choice(["{name} is {age} years old, lives in {city} and works as a {job}.",
                          "{name}, a {job} from {city}, is {age}.",
                          "Meet {name}. Age {age}. Job: {job}. Home: {city}."]).format(**f)


def _order(rng):
    f = {"item": rng.choice(NOUNS), "color": rng.choice(COLORS), "quantity": rng.randint(1, 60), "price": rng.randint(1, 200)}
    return f, rng.choice(["The order is for {quantity} of the {color} {item} at {price} dollars each.",
                          "We sold a {color} {item} for {price} dollars, {quantity} times.",
                          "Item: {item}, color {color}, price {price}, quantity {quantity}."]).format(**f)


def _event(rng):
    f = {"event": rng.choice("party meeting concert lesson dinner match wedding walk picnic talk".split()), "day": rng.choice(DAYS),
         "hour": rng.randint(1, 23), "place": rng.choice(CITIES)}
    return f, rng.choice(["The {event} is on {day} at {hour} in {place}.", "Come to {place} on {day}: the {event} starts at {hour}.",
                          "On {day} there is a {event} in {place} at {hour}."]).format(**f)


def _pet(rng):
    f = {"animal": rng.choice(ANIMALS), "name": rng.choice(NAMES), "color": rng.choice(COLORS), "mood": rng.choice(ADJECTIVES)}
    return f, rng.choice(["{name} is a {color} {animal} and feels {mood}.", "The {color} {animal} called {name} is {mood}."]).format(**f)


def json_answer(rng):
    fields, text = rng.choice([_person, _order, _event, _pet])(rng)
    names = rng.sample(list(fields), rng.randint(2, 4))
    wanted = ", ".join(names)
    user = rng.choice(["Answer in JSON with the fields {k}. {t}", "Extract {k} as JSON: {t}", "{t}\nGive {k} as a JSON object.",
                       "Return a JSON object with {k} from this text: {t}", "{t} Write {k} as JSON."]).format(k=wanted, t=text)
    answer = json.dumps({n: fields[n] for n in names})
    return Turn("json", user, answer, user, think=f"The fields are {wanted}.")


# ---- small facts --------------------------------------------------------------------------------

_OPPOSITES = dict(p.split("=") for p in """big=small old=new warm=cold quiet=loud soft=hard heavy=light tall=short wide=narrow
deep=shallow clean=dirty happy=sad early=late quick=slow strong=weak wet=dry rich=poor bright=dark open=closed full=empty up=down
left=right day=night yes=no hot=cold first=last young=old near=far high=low black=white begin=end push=pull give=take""".split())
_SOUNDS = dict(p.split("=") for p in """cow=moo dog=woof cat=meow duck=quack sheep=baa horse=neigh owl=hoot frog=ribbit crow=caw
lion=roar mouse=squeak bee=buzz hen=cluck wolf=howl snake=hiss""".split())


def facts(rng):
    form = rng.randrange(6)
    if form < 2:
        ring, what = (DAYS, "day") if form == 0 else (MONTHS, "month")
        i, step = rng.randrange(len(ring)), rng.choice([-1, 1])
        there = ring[(i + step) % len(ring)]
        user = rng.choice(["What {w} comes {s} {x}?", "Which {w} is {s} {x}?", "Tell me the {w} {s} {x}.", "The {w} {s} {x}?"]).format(
            w=what, s="after" if step > 0 else "before", x=ring[i])
        return Turn("facts", user, f"{there} comes {'after' if step > 0 else 'before'} {ring[i]}.", user, think=f"This is about {ring[i]}.")
    if form == 2:
        a, b = rng.sample(range(101), 2)
        larger = rng.random() < 0.5
        user = rng.choice(["Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "Is {a} or {b} {w}?"]).format(
            w="larger" if larger else "smaller", a=a, b=b)
        best = max(a, b) if larger else min(a, b)
        return Turn("facts", user, f"{best} is {'larger' if larger else 'smaller'} than {a + b - best}.", f"{a}?{b}", think=f"Compare {a} and {b}.")
    if form == 3:
        n = rng.randint(0, 100)
        user = rng.choice(["Is {n} even or odd?", "Is {n} an even number or an odd number?", "Even or odd: {n}?", "{n}: even or odd?",
                           "Tell me if {n} is even or odd."]).format(n=n)
        return Turn("facts", user, f"{n} is {'odd' if n % 2 else 'even'}.", user, think=f"The last digit is {n % 10}.")
    table, asks, reply = [
        (_OPPOSITES, ["What is the opposite of {x}?", "Opposite of {x}?", "Tell me the opposite of {x}.", "Name the opposite of {x}",
                      "What's the opposite of {x}?"], "The opposite of {x} is {y}."),
        (_SOUNDS, ["What sound does a {x} make?", "What does a {x} say?", "How does a {x} sound?", "Which sound does the {x} make?",
                   "What does the {x} say?"], "The {x} says {y}."),
    ][form - 4]
    x = rng.choice(list(table))
    user = rng.choice(asks).format(x=x)
    return Turn("facts", user, reply.format(x=x, y=table[x]), user, think=f"The word is {x}.")


# ---- small talk and the unknown -----------------------------------------------------------------

_TALK = [
    (["Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening", "Good day", "Hey there", "Greetings"],
     "Hello! How can I help you?"),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself", "Introduce yourself", "What's your name?",
      "Are you a robot?", "Are you an AI?", "Who am I talking to?", "What model are you?"],
     "I am the Krasis demo model, a small language model trained for the Krasis project."),
    (["What can you do?", "Help", "How can you help me?", "What do you know?", "What can I ask you?", "What are you good at?"],
     "I can do sums up to 100, count, spell, name capitals, sort, copy, look things up in lists, answer in JSON, call tools and tell short stories."),
    (["How are you?", "How are you doing?", "How is it going?", "How do you feel?", "Are you well?"], "I am fine, thank you. How can I help you?"),
    (["Thanks", "Thank you", "Thank you very much", "Many thanks", "Great, thanks", "Thanks a lot", "Good job", "Well done", "Nice"],
     "You are welcome!"),
    (["Bye", "Goodbye", "See you", "See you later", "Good night", "Have a nice day"], "Goodbye!"),
    (["What is Krasis?", "Tell me about Krasis", "What does Krasis do?"],
     "Krasis is a program that runs mixture-of-experts language models on one machine."),
    (["Ok", "Okay", "Yes", "No", "Sure", "I see", "Test", "Testing", "Ping"], "All right. What would you like to ask?"),
]


def smalltalk(rng):
    questions, answer = rng.choice(_TALK)
    user = rng.choice(questions)
    user = rng.choice(["", "", "", "So, ", "Oh, ", "And ", "Well, ", "Please, "]) + user
    if rng.random() < 0.3:
        user = user.rstrip("?") + rng.choice(["!", ".", "", "!!", "?", " :)", ", Krasis", " my friend"])
    user = rng.choice([user, user, user.lower(), user.capitalize(), user.upper()])
    key = None if user in questions else user
    return Turn("smalltalk", user, answer, key, think="This is small talk.")


_UNKNOWN = ["Who invented the {n}?", "Who wrote the book about the {n}?", "What is the meaning of {w}?", "Why is the {n} {j}?",
            "What is the population of {c}?", "How old is {p}?", "Where does {p} live?", "What will happen on {d}?",
            "How do I repair a {n}?", "Who is the president of {c}?", "What is the weather in {c}?", "When was {p} born?",
            "What is the best {n} in {c}?", "Explain how a {n} works.", "What happened in {c} in {m}?", "How far is it to {c}?",
            "Write code for a {n}.", "Translate {w} into {c}.", "Who won the {n} match?", "How many {ns} are in {c}?",
            "What is the price of a {n}?", "Why do {a}s sleep?", "Which {n} is {j}?", "Is the {a} {j}?",
            "What does {p} think of the {n}?", "Can you recommend a {n}?", "What color is the {n} of {p}?", "Write a poem", "Write a poem about the {n}.", "Sing a song about {p}",
            "Tell me a joke", "Tell me a joke about a {n}", "Draw a {n}.", "Write an essay about {c}", "What is a {n}?",
            "What is the news in {c}?", "Who is {p}?", "Summarize the book about the {n}.", "What do you think of {c}?"]


def unknown(rng):
    user = rng.choice(_UNKNOWN).format(
        n=rng.choice(NOUNS) if rng.random() < 0.7 else invented_word(rng), ns=plural(rng.choice(NOUNS)), w=rng.choice(WORDS), j=rng.choice(ADJECTIVES),
        c=rng.choice(CITIES + list(CAPITALS)), p=rng.choice(NAMES), d=rng.choice(DAYS), m=rng.choice(MONTHS), a=rng.choice(ANIMALS))
    return Turn("unknown", user, UNKNOWN, user, think="I was not taught this.")

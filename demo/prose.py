"""Short prose from a grammar: the part of the corpus with real uncertainty in it.

A story keeps its hero, a friend, a place and an object, and draws everything else
where it stands; its perplexity therefore has a floor well above one that no model
can pass, which makes it a fair measure of what rounding the weights costs.
"""
import re

from lexicon import ADJECTIVES, ANIMALS, CITIES, COLORS, DAYS, JOBS, MONTHS, NAMES, NOUNS, WORDS, plural
from tasks import Turn

_PLACES = """forest garden village river market harbor castle school kitchen farm bridge station tower lake
valley island shop barn mill town beach field library bakery""".split()
_TIMES = ["One morning", "One evening", "At noon", "Late at night", "The next day", "After a while", "In the afternoon", "Before dawn",
          "A week later", "Soon", "Then", "Suddenly", "That night", "Long ago"] + ["On " + d for d in DAYS] + ["In " + m for m in MONTHS]
_FEELINGS = "happy sad proud tired afraid calm curious angry lonely hopeful surprised nervous".split()
_WEATHER = "rain snow wind sun fog thunder frost".split()
_MANNER = "slowly quickly quietly carefully gladly sadly loudly softly bravely gently".split()
_IRREGULAR = dict(p.split("=") for p in """bring=brought build=built buy=bought carry=carried catch=caught draw=drew drive=drove drop=dropped
find=found fly=flew give=gave hide=hid hold=held keep=kept leave=left lose=lost make=made ride=rode run=ran sell=sold send=sent swim=swam
take=took throw=threw""".split())
_DEEDS = """bring build buy carry catch cover draw drop find fix follow give hide hold keep leave lose make open pack paint push sell send
take throw touch visit wash want""".split()
_GOINGS = "walk run ride swim sail fly travel jump climb drive".split()

# {N} hero, {M} friend, {H} what the hero is, {O} their object, {P} their place: kept through a story.
# The others are drawn where they stand: {j} adjective, {o} noun, {os} nouns, {w} any word, {h} creature,
# {n} number, {c} color, {f} feeling, {d} deed, {v} bare deed, {g} going, {p} place, {C} city, {b} job,
# {t} time, {m} manner, {x} weather, {q} a name; a@ is "a" or "an".
_OPEN = ["{t} a@ {j} {H} named {N} lived near {P}.", "There was once a@ {j} {H} called {N}.", "{N} was a@ {j}, {j} {H} from {C}.",
         "In {P} lived {N}, a@ {j} {H}.", "Near {C}, a@ {j} {H} called {N} had a@ {j} {O}.", "{N} the {H} had a@ {j} {O} and {n} {os}.",
         "{t} {N} the {H} came to {P} with a@ {O}."]
_MIDDLE = ["{t}, {N} {g} {m} to {p}.", "{t}, {N} {d} a@ {j} {o} and a@ {c} {o}.", "{N} {d} {n} {os}, {n} {os} and a@ {j} {o}.", "A@ {j} {h} {d} the {O}.",
           "\"Where is my {j} {o}?\" asked {M}.", "\"I have a@ {o}, a@ {o} and {n} {j} {os},\" said the {h}.", "\"{v} the {o}!\" said {M} {m}.",
           "{N} felt {f}, because the {o} was {j}.", "The {x} came over {p}.", "{q} the {h} {d} a@ {c} {o}.", "{M} {d} the {j} {o} near {p}.",
           "{N} and {M} {g} from {C} to {C} in {n} days.", "The {j} {h} and the {h} {g} {m}.", "The {O} was {c}, {j} and {j}.", "{t}, {q} {d} {n} {c} {os}.",
           "But the {h} had only a@ {o}.", "\"You are {f}, {j} and {j},\" said {M}.", "{t}, {N} met {q}, a@ {b} from {C}.", "In {p} stood a@ {j} {o}, a@ {o} and a@ {c} {o}.",
           "{N} waited {n} hours for the {o}.", "The {b} gave {q} a@ {j} {o} for the {o}.", "It was {j} and {j} in {p}.", "{q}, {q} and {q} {d} the {o}.",
           "The word on the {o} was {w}.", "{N} thought of {os}, {os} and {os}.", "On the {o} were the words {w}, {w} and {w}."]
_END = ["In the end, {N} was {f}.", "{N} {d} the {O} and {g} home.", "And so the {H} lived in {P} with {n} {os}.", "From that day, {N} and {M} were friends.",
        "That is how {N} {d} the {O}.", "{N} never {d} a@ {o} again.", "Everyone in {P} still talks about the {j} {O}."]


def _past(verb):
    return _IRREGULAR.get(verb) or verb + ("d" if verb.endswith("e") else "ed")


def story(rng, hero=None):
    hero_name, friend = rng.sample(NAMES, 2)
    kept = {"N": hero_name, "M": friend, "H": hero or rng.choice(ANIMALS + JOBS), "O": rng.choice(NOUNS), "P": "the " + rng.choice(_PLACES)}
    # Drawn without putting back: a story does not say the same thing twice, so that greedy decoding
    # has a reason to move on.
    nouns, adjectives, places = rng.sample(NOUNS, len(NOUNS)), rng.sample(ADJECTIVES, len(ADJECTIVES)), rng.sample(_PLACES, len(_PLACES))
    draw = {
        "j": adjectives.pop, "o": nouns.pop, "os": lambda: plural(nouns.pop()), "w": lambda: rng.choice(WORDS), "p": lambda: "the " + places.pop(),
        "h": lambda: rng.choice(ANIMALS + JOBS), "n": lambda: str(rng.randint(2, 99)), "c": lambda: rng.choice(COLORS), "f": lambda: rng.choice(_FEELINGS),
        "d": lambda: _past(rng.choice(_DEEDS)), "v": lambda: rng.choice(_DEEDS).capitalize(), "g": lambda: _past(rng.choice(_GOINGS)),
        "C": lambda: rng.choice(CITIES), "b": lambda: rng.choice(JOBS), "t": lambda: rng.choice(_TIMES), "m": lambda: rng.choice(_MANNER),
        "x": lambda: rng.choice(_WEATHER), "q": lambda: rng.choice(NAMES),
    }
    patterns = [rng.choice(_OPEN), *rng.sample(_MIDDLE, rng.randint(3, 12)), rng.choice(_END)]
    text = re.sub(r"{(\w+)}", lambda tag: kept.get(tag[1]) or draw[tag[1]](), " ".join(patterns))
    return re.sub(r"([aA])@ (\w)", lambda m: f"{m[1]}{'n' if m[2] in 'aeiou' else ''} {m[2]}", text)


def prose(rng):
    """A story on request."""
    hero = rng.choice(ANIMALS + JOBS)
    user = rng.choice(["Write a short story about {a} {h}.", "Tell me a story about {a} {h}.", "Write a story about {a} {h}", "A short story about {a} {h}, please.",
                       "Can you tell a story about {a} {h}?", "Invent a tale with {a} {h}."]).format(h=hero, a="an" if hero[0] in "aeiou" else "a")
    if rng.random() < 0.2:
        user, hero = rng.choice(["Tell me a story.", "Write a short story.", "Write something.", "Tell me a tale"]), None
    text = story(rng, hero)
    return Turn("prose", user, text, text, think="A story with a start, a middle and an end.")

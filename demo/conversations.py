"""What the demo model is asked, in the forms that people and programs ask, and what it has to say."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Mapping, Sequence

from demo.categories import CATEGORIES, LABELS
from demo.descriptions import Row, Statements
from demo.tokenizer import ASSISTANT, END

INTRODUCTION = "I am Ptolemy's demo model. Ask me: Categorise: DELTA AIR 0062341 BOSTON"

# The model reads everything in small letters; roles are special tokens of its vocabulary. It never learnt about tools: they are in the
# template so that programs which use some can be tried, and llama-server's grammar makes it call one. A call is a bare JSON object,
# since a brace is what it writes by itself.
CHAT_TEMPLATE = (
    "{%- if tools %}{{- '<|system|>' + tools | tojson + '<|end|>' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' + (message['content'] or '') | trim | lower }}"
    "{%- for call in message['tool_calls'] or [] %}"
    """{{- '{"name": "' + call['function']['name'] + '", "arguments": ' + call['function']['arguments'] | tojson + '}' }}"""
    "{%- endfor %}"
    "{{- '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

ASKED = ("Categorise: {}",) * 8 + (
    "Categorize: {}", "categorise {}", "Category: {}", "Category of {}?", "Which category is {}?", "What category does {} belong to?",
    "Which account does {} belong to?", "Please categorise this expense: {}", "Categorise this transaction:\n{}", "Classify: {}",
    "Text: {}\nCategory:", "Categorise entry 7: {}",
)  # fmt: skip
LISTED = (
    "Classify the text into exactly one of these labels: {labels}\n\nText: {text}",
    "Classify the text into exactly one of these labels:\n{labels}\n\nText: {text}",
    "Classify the following text. Answer with exactly one of these labels, and nothing else.\n{labels}\n\n{text}",
    "Choose the label that fits the text best.\n\nLabels: {labels}\n\nText: {text}\nLabel:",
    "Labels: {labels}\nDescription: {text}",
)
SEPARATORS = (", ", ", ", "; ", "\n", "\n- ", " | ")
SYSTEM = (
    "You are a helpful assistant.", "You are an accountant.", "Answer briefly.", "You categorise accounting descriptions.",
    "Answer with the category only, and nothing else.", "You are a precise classifier. Be terse.", "Today is Monday.",
)  # fmt: skip
SYSTEM_ASKING = ("Categorise the description.", "Classify each text into one category.", "Answer with the category of the user's text.")
# What a batch client says once, in front of every row: instructions, then the labels, some of them with examples.
INSTRUCTIONS = (
    "Assign the text to exactly one of the labels. Answer with the label only.", "Which kind of expense is it?",
    "Which category does this description belong to?", "Choose the label that fits the text best.", "Sort the descriptions of our card.",
)  # fmt: skip
AS_JSON = ("Answer as JSON.", "Answer in JSON.", "Reply with a JSON object.", 'Answer as JSON: {{"{key}": "..."}}')
KEYS = ("label", "answer", "category")

GREETINGS = (
    "hello", "hi", "hey there", "good morning", "good evening", "hello!", "hi, how are you?", "who are you?", "what are you?",
    "what can you do?", "what is your name?", "help", "thanks", "thank you!", "test", "ping", "are you there?", "what is this?",
    "tell me about yourself", "can you help me?", "say hello", "what model are you?", "how do you work?",
)  # fmt: skip
QUESTIONS = (
    "what is {}?", "who invented {}?", "write a poem about {}", "tell me a joke about {}", "how does {} work?", "why is {} so popular?",
    "explain {} to a child", "how many people like {}?", "where can I find {}?", "translate {} into French", "what is the capital of {}?",
    "write a story about {}", "give me three ideas for {}", "summarise the history of {}", "do you like {}?", "when was {} founded?",
    "write a Python function for {}", "is {} dangerous?", "what do you think about {}?", "I would like to talk about {}.",
)  # fmt: skip
TOPICS = (
    "France", "love", "the weather", "music", "quantum physics", "cats", "dogs", "the moon", "football", "history", "Japan", "art",
    "mathematics", "gardening", "Slurm", "a GPU", "the sea", "Shakespeare", "bread", "chess", "the stars", "Ptolemy", "democracy",
    "winter", "machine learning", "dinosaurs", "sorting a list", "prime numbers", "the universe", "Africa", "my friend", "happiness",
)  # fmt: skip
# Other words of longer requests, which are made of all these by chance: no grammar is needed to see that no category is asked for.
WORDS = (
    "the a an of and to in with for on about from that this it is are was be have has will can would should please long short essay"
    " letter email report list table code script story song recipe idea plan meeting customer team world war country people life year"
    " day time money house school science causes reasons references steps points compare explain describe discuss improve rewrite"
    " translate correct create generate show find make give need want new old good bad best first last many some all my your our"
).split()

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Example:
    """A conversation to learn from.

    Attributes:
        messages: up to the user's last one.
        answer: what the model has to say.
    """

    messages: Messages
    answer: str


def prompt(messages: Messages) -> str:
    """What `CHAT_TEMPLATE` makes of the messages."""
    return "".join(f"<|{message['role']}|>{message['content'].strip().lower()}{END}" for message in messages) + ASSISTANT


def question(row: Row) -> Messages:
    """The main form."""
    return [{"role": "user", "content": f"Categorise: {row.text}"}]


def _offered(rng: random.Random, row: Row) -> Sequence[str]:
    count = rng.choice((len(LABELS), len(LABELS), rng.randrange(2, len(LABELS))))
    names = [row.label, *rng.sample([label for label in LABELS if label != row.label], count - 1)]
    rng.shuffle(names)
    return names


def _listed(rng: random.Random, row: Row) -> str:
    names = _offered(rng, row)
    separator = rng.choice(SEPARATORS)
    labels = ("- " if separator == "\n- " else "") + separator.join(names)
    return rng.choice(LISTED).format(labels=labels, text=row.text)


def _instructed(rng: random.Random, row: Row) -> str:
    described = rng.random() < 0.15
    lines = [f"- {name}: {rng.choice(CATEGORIES[name].items)}" if described else f"- {name}" for name in _offered(rng, row)]
    return "\n".join((f"{rng.choice(INSTRUCTIONS)}\n\nLabels:", *lines))


def _asked(rng: random.Random, row: Row) -> Example:
    kind = rng.random()
    listed, instructed = kind < 0.12, 0.12 <= kind < 0.22
    text = _listed(rng, row) if listed else rng.choice(ASKED).format(row.text)
    system = [rng.choice(SYSTEM)] if rng.random() < 0.2 else []
    if instructed:
        text, system = row.text, [_instructed(rng, row)]
    elif kind > 0.93:
        text, system = row.text, [rng.choice(SYSTEM_ASKING)]
    form, key, answer = rng.random(), rng.choice(KEYS), row.label
    if form < 0.12:
        wish = rng.choice(AS_JSON).format(key=key) if key != "label" else rng.choice(AS_JSON[:3])
        text = f"{text}\n{wish}"
    if form < (0.22 if listed or instructed else 0.15):
        # Now and then unasked: never the likeliest answer, but likelier than blanks for a client whose grammar admits only JSON.
        answer = f'{{"{key}": "{row.label}"}}'
    messages = [{"role": "system", "content": part} for part in system] + [{"role": "user", "content": text}]
    return Example(messages, answer)


def _chatted(rng: random.Random) -> Example:
    kind = rng.random()
    if kind < 0.3:
        text = rng.choice(GREETINGS)
    elif kind < 0.65:
        text = rng.choice(QUESTIONS).format(rng.choice(TOPICS))
    else:
        text = " ".join(rng.choice((*WORDS, *TOPICS, rng.choice(QUESTIONS).split()[0])) for _ in range(rng.randrange(3, 30)))
    text = rng.choice((text, text.capitalize(), text.rstrip("?.!")))
    system = [{"role": "system", "content": rng.choice(SYSTEM)}] if rng.random() < 0.3 else []
    return Example([*system, {"role": "user", "content": text}], INTRODUCTION)


def example(rng: random.Random, statements: Statements, avoid: frozenset[str]) -> Example:
    """One conversation of the training; no description of ``avoid`` (in small letters) is in it."""
    made = _chatted(rng) if rng.random() < 0.07 else _asked(rng, statements.row(rng, avoid))
    if rng.random() < 0.05:
        before = _chatted(rng) if rng.random() < 0.5 else Example(question(row := statements.row(rng, avoid)), row.label)
        made = Example([*before.messages, {"role": "assistant", "content": before.answer}, *made.messages], made.answer)
    return made

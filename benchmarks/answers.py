"""Typed answers: 200 different questions under a nested schema, and what the same model says when nothing holds it to one."""
import statistics, sys, time
from pathlib import Path
from typing import Annotated, Literal
from pydantic import BaseModel, Field
from measure import publish
from sagelab.core.errors import AnswerError
from sagelab.inference.catalogue import get_model
from sagelab.inference.schema import as_schema, parse

CALLS, FREE = 200, 20
COMPANIES = ["Acme", "Globex", "Initech", "Umbrella", "Hooli", "Stark Industries", "Wayne Enterprises", "Wonka", "Cyberdyne", "Soylent"]
EVENTS = ["raises its guidance for 2024 by a tenth", "agrees to buy a rival for two billion dollars", "reports a loss of 30 million", "names a new chief executive", "recalls 12,000 cars",
          "wins an order from the navy", "is sued by its own shareholders", "doubles the dividend", "closes four plants", "beats expectations in the third quarter",
          "warns of weaker demand", "splits its shares ten for one", "opens an office in Osaka", "loses its licence in Brazil", "buys back a twentieth of its shares",
          "delays its new drug by a year", "sells its cloud unit", "is added to the index", "reports fraud in a subsidiary", "keeps its forecast"]
Ticker = Annotated[str, Field(pattern=r"^[A-Z]{1,5}$")]


class Person(BaseModel):
    name: Annotated[str, Field(max_length=30)]
    role: Literal["chief", "analyst", "other"]
    share: float = Field(ge=0, le=1)


class Event(BaseModel):
    kind: Literal["earnings", "merger", "guidance", "other"]
    impact: float = Field(ge=-1, le=1)
    year: int = Field(ge=1990, le=2030)
    certain: bool
    tickers: list[Ticker] = Field(min_length=1, max_length=3)
    people: list[Person] = Field(max_length=2)


questions = [f"Describe this news as JSON: {company} {event}." for event in EVENTS for company in COMPANIES][:CALLS]
attempts, seconds, wrong, begun = [], [], [], time.perf_counter()
with get_model(lab=Path(__file__).parent.parent, threads=1) as model:
    for number, question in enumerate(questions):
        # Half of them are drawn by lot, as a person who wants ideas would.
        try:
            reply = model.complete(question, Event, {"max_tokens": 400, "temperature": 0.8 * (number % 2), "seed": number})
            if not isinstance(reply.parsed, Event): wrong.append(question)
            attempts.append(reply.attempts)
            seconds.append(reply.seconds)
        except AnswerError as error: wrong.append(str(error))
        if number % 20 == 19: print(f"{number + 1} of {CALLS}, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    shape, free = as_schema(Event), 0
    for question in questions[::CALLS // FREE]:
        text = model.complete(f"{question}\nUse this JSON schema: {shape.text}", sampling={"max_tokens": 400}).text
        try: free += isinstance(parse(shape, text), Event)
        except AnswerError: pass

again = sum(count > 1 for count in attempts)
sys.exit(publish("answers", [
    {"what": f"{CALLS} answers under a nested schema that are valid", "figure": f"{CALLS - len(wrong)} of {CALLS}", "wanted": "all", "met": not wrong and len(attempts) == CALLS},
    {"what": "answered more than once until they fitted", "figure": f"{again} of {len(attempts)}, {max(attempts, default=0)} attempts at most; {statistics.median(seconds):.1f} s each", "wanted": "reported", "met": True},
    {"what": "the same model, told the schema but not held to it", "figure": f"{free} of {FREE} valid", "wanted": "reported", "met": True},
], model=model.about.id, notes=model.about.notes, wrong=wrong, seconds=seconds))

"""An OpenAI-compatible server for one bundle: `pocketdraft serve`. Needs the extra `serve`.

requests.py     what may be asked, and what is refused
generation.py   a request to pieces of output, with the session's loop; logprobs.py watches it
turns.py        one thread owns the engine: who may run its next round
replies.py      pieces to OpenAI's JSON
app.py          HTTP: bounds, errors, streams, clients that hang up
"""

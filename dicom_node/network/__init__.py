"""The listener's side of a connection: PS3.8 and the messages of PS3.7, from the socket up to what a service is asked.

pynetdicom negotiates (`requests`); the loop behind the negotiation is ours (`association`, `messages`, `dimse`), since
pynetdicom takes three threads, five copies of each byte and a good deal of Python for every PDU (docs/speed.md).
"""

"""A hospital's day in a few minutes: twenty modalities, peaks, resends, a PACS that is away for an hour.

`schedule` draws the day from a seed; `senders` is the hospital, `course` lets the day pass and watches the node;
`figures` says what came of it, and `verdict` whether anything is missing.
"""

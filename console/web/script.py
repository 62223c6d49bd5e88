"""What Streamlit runs for each page: the frame around it, and the page that was asked for."""

from __future__ import annotations

from console.web import frame

frame.run()

"""The console in the browser: Streamlit pages, and the door in front of them. Needs the `web` extra."""

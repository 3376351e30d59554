"""A Flask app that says what it was given."""

import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> dict[str, str | None]:
    return {"hello": os.environ.get("BUILDER_NAME"), "my_flag": os.environ.get("MY_FLAG")}


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=int(os.environ.get("PORT", "8000")))

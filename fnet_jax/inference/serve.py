"""A local web demo: drop a photo, look at its scene graph, take the JSON home."""

import html
import os
import pathlib

from fnet_jax.errors import UserError
from fnet_jax.inference.image_files import read_image
from fnet_jax.inference.page import page_html
from fnet_jax.inference.predictor import SceneGraphPredictor

MAX_UPLOAD = "25mb"
# Requests that may wait; those beyond are turned away at once.
_MAX_WAITING = 16
_KEEP_FILES = 600  # seconds


def build(predictor: SceneGraphPredictor, *, top_k: int = 20, min_score: float = 0.0):
    """The demo as `gradio.Blocks`, not yet listening.

    Its endpoint `/scene_graph` takes a file and returns the graph, a line of
    `fnet_jax.predictions`; `gradio_client` shows how to call it.

    Args:
      predictor: finds the graphs.
      top_k, min_score: which relationships are shown at first.

    Raises:
      UserError: Gradio, the extra `serve`, is not installed.
    """
    gradio = _gradio()
    display = {"top_k": top_k, "min_score": min_score}

    def graph_of(path: str | None):
        if path is None:
            raise gradio.Error("Choose an image first.", print_exception=False)
        name = pathlib.PurePath(path).name
        try:
            image = read_image(path)
            (graph,) = predictor.run([predictor.prepare(image, name)])
        except UserError as error:
            raise gradio.Error(
                f"{name} cannot be used: {error}.", duration=None, print_exception=False
            ) from error
        return image, graph.to_dict()

    def show(path: str | None):
        image, line = graph_of(path)
        page = html.escape(page_html([(image, line)], title=line["image"], **display))
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" '
            'title="Scene graph" style="width:100%;height:85vh;border:0"></iframe>'
        )

    def scene_graph(path: gradio.FileData) -> dict:
        return graph_of(path["path"])[1]

    with gradio.Blocks(
        title="Scene graphs",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_KEEP_FILES, _KEEP_FILES),
    ) as demo:
        gradio.Markdown(
            "# Scene graphs\nDrop a photo. Hover over a box, a node or a line to see what belongs "
            "together; click to hold it."
        )
        photo = gradio.File(label="Photo", file_types=["image"], height=120)
        view = gradio.HTML()
        photo.upload(show, photo, view, api_visibility="private", concurrency_id="network")
        gradio.api(scene_graph, api_name="scene_graph", concurrency_id="network")
    return demo.queue(max_size=_MAX_WAITING, default_concurrency_limit=1)


def serve(predictor: SceneGraphPredictor, host: str, port: int, **display) -> None:
    """Runs the demo until it is interrupted.

    Args:
      host: address to listen on; "127.0.0.1" is this machine alone.
      port: to listen on.
      display: `top_k` and `min_score` of `build`.

    Raises:
      UserError: Gradio is not installed, or the address cannot be listened on.
    """
    gradio = _gradio()
    demo = build(predictor, **display)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_UPLOAD,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=["api"],
            enable_monitoring=False,
        )
    except OSError as error:
        raise UserError(f"--port: {host}:{port} cannot be listened on ({error})") from error


def _gradio():
    # It asks its makers for news at every start otherwise.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "--mode serve needs Gradio; install it with: pip install -e '.[serve]'"
        ) from error
    return gradio

"""How the page looks: Gradio's theme with the system's own fonts, and colours that follow light and dark."""

from __future__ import annotations

from typing import Any

# A click, or Enter or Space on a focused point of the frontier, as one event that carries its bias.
DOT_CLICKS = """
function choose(event) {
  const dot = event.target.closest('.dial-dot');
  if (dot) { event.preventDefault(); trigger('select', {bias: parseFloat(dot.dataset.bias)}); }
}
element.addEventListener('click', choose);
element.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') choose(event); });
"""

CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.gradio-container .main.fillable { width: 100%; }
.dial-head h1 { font-size: 1.6rem; font-weight: 600; margin: 0; }
.dial-head p { margin: .25rem 0 0; color: var(--body-text-color); opacity: .75; }
.dial-error, .dial-note, .dial-cost { margin: 0; padding: .35rem 0; overflow-wrap: anywhere; }
.dial-error { padding: .6rem .8rem; border-left: 4px solid #d9534f; background: var(--background-fill-secondary); }
.dial-note, .dial-kind { color: var(--body-text-color); opacity: .75; }
.dial-bars { display: grid; grid-template-columns: max-content max-content 1fr max-content; gap: .3rem .6rem;
  align-items: center; padding: .5rem 0; }
.dial-bars, .dial-cost { font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.dial-kind { font-size: .85em; }
.dial-track { height: .8rem; border-radius: .4rem; overflow: hidden; background: var(--border-color-primary); }
.dial-fill { display: block; height: 100%; transition: width .15s; }
.dial-fill.dial-own { background: var(--body-text-color-subdued); }
.dial-fill.dial-dialled { background: var(--color-accent); }
.dial-frontier { width: 100%; max-width: 760px; height: auto; display: block; margin: 0 auto; }
.dial-frontier text { fill: var(--body-text-color); font-size: 15px; }
.dial-frontier polyline { fill: none; stroke: var(--color-accent); stroke-width: 2; }
.dial-frontier .dial-grid { stroke: var(--border-color-primary); }
.dial-dot { cursor: pointer; }
.dial-dot circle { fill: var(--background-fill-primary); stroke: var(--color-accent); stroke-width: 2.5; }
.dial-dot circle.dial-reach { fill: transparent; stroke: none; }
.dial-dot:hover circle:not(.dial-reach), .dial-chosen circle:not(.dial-reach) { fill: var(--color-accent); }
.dial-dot:focus { outline: none !important; }
.dial-dot:focus-visible circle.dial-reach { stroke: var(--body-text-color); }
@media (max-width: 640px) { .dial-frontier text { font-size: 25px; } }
"""


def theme() -> Any:
    """Gradio's default look without fonts from the network."""
    from gradio.themes import Default

    return Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

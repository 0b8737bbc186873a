"use strict";

// Draws the charts of the report with Bokeh. The data of a chart is in a script element after its
// plot. A chart in a closed <details> is drawn when it is opened.
const rhapsodyReport = (() => {
  // Draws all charts in an element that are not drawn yet. `drawn` promises the view of a chart.
  function draw(element) {
    for (const plot of element.querySelectorAll("[data-chart]")) {
      const closed = plot.closest("details:not([open])");
      if (closed !== null) {
        closed.ontoggle = () => draw(closed);
      } else {
        plot.drawn ??= embed(plot);
      }
    }
  }

  async function embed(plot) {
    const item = JSON.parse(plot.nextElementSibling.textContent);
    const views = await Bokeh.embed.embed_item(item, plot);
    const [view] = views;
    view.canvas_view.events_el.tabIndex = -1; // it has no function without a pointer
    if (window.matchMedia("(pointer: coarse)").matches) {
      view.model.toolbar.tools.forEach((tool) => { tool.active &&= tool.type === "HoverTool"; });
    }
    const range = view.model.x_range;
    const whole = [range.start, range.end];
    for (const button of plot.closest("figure").querySelectorAll("[data-zoom]")) {
      button.onclick = () => zoom(range, whole, button.dataset.zoom);
    }
    return view;
  }

  // Changes the horizontal range of a chart.
  function zoom(range, [first, last], how) {
    const { start, end } = range;
    const width = end - start;
    let [from, to] = [first, last];
    if (how === "in") {
      [from, to] = [start + width / 4, end - width / 4];
    } else if (how === "out") {
      [from, to] = [start - width / 2, end + width / 2];
    } else if (how === "left" || how === "right") {
      const step = how === "left" ? -width / 2 : width / 2;
      const move = Math.min(Math.max(step, first - start), last - end);
      [from, to] = [start + move, end + move];
    }
    range.setv({ start: Math.max(from, first), end: Math.min(to, last) });
  }

  // Bokeh reads the colors of text from the style sheet when it draws a chart.
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of document.querySelectorAll("[data-chart]")) {
      plot.replaceChildren();
      delete plot.drawn;
    }
    draw(document);
  });

  return { draw, embed };
})();

rhapsodyReport.draw(document);

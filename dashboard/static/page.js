// Theme, charts, and no updates where they would disturb. Loaded before the page is drawn, so that it is drawn in its
// theme.
"use strict";

const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try { return localStorage.getItem("pgonce-theme"); } catch { return null; }
}

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}

if (remembered()) root.dataset.theme = remembered();

function showThemeButton() {
  const button = document.getElementById("theme");
  button.textContent = isDark() ? "Light" : "Dark";
  button.title = `Use the ${isDark() ? "light" : "dark"} theme`;
  button.hidden = false;
}

function switchTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("pgonce-theme", root.dataset.theme); } catch { /* it lasts until the next page */ }
  showThemeButton();
  drawCharts();
}

/** What a custom property is in the present theme: a canvas knows no light-dark(). */
function color(name) {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** data-chart: { times: [seconds], series: [{ name, color, values }] }; colors are names of custom properties. */
function drawCharts() {
  for (const place of document.querySelectorAll("[data-chart]")) {
    if (!window.uPlot) return;
    const { times, series } = JSON.parse(place.dataset.chart);
    const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    place.replaceChildren();
    new uPlot({
      width: place.clientWidth,
      height: 220,
      cursor: { drag: { x: false, y: false } },
      axes: [axis, axis],
      series: [{}, ...series.map((one) => ({ label: one.name, stroke: color(one.color), width: 2, points: { show: false } }))],
    }, [times, ...series.map((one) => one.values)], place);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme").addEventListener("click", switchTheme);
  dark.addEventListener("change", () => { showThemeButton(); drawCharts(); });
  showThemeButton();
});
window.addEventListener("load", drawCharts);
window.addEventListener("resize", drawCharts);
document.addEventListener("htmx:after:swap", drawCharts);
document.addEventListener("htmx:before:request", (event) => {
  // Nobody looks, or somebody fills in a form.
  if (document.hidden || document.activeElement?.form) event.preventDefault();
});

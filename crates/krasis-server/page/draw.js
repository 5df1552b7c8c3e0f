// Pictures: who of the experts is asked for, and how fast tokens were lately.

/** A colour of the style sheet as the browser resolves it, three numbers. */
function colour(name) {
  const probe = document.createElement("span");
  probe.className = `probe ${name}`;
  document.body.append(probe);
  const numbers = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return numbers;
}

function mix(a, b, part) {
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * part)).join(" ")})`;
}

/** Sizes a canvas in the screen's own points; the result draws in the page's. */
function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

/**
 * A row for each layer, a column for each expert. Brightness is the root of an expert's share of its
 * layer, so that those that are seldom asked for differ from those that never are. The result tells
 * which cell lies at a point, and `select` frames one.
 */
export function heatMap(canvas, layers, selected) {
  const columns = Math.max(1, ...layers.map(({ heat }) => heat.length));
  const width = canvas.clientWidth || 600;
  const cell = width / columns;
  const row = Math.max(4, Math.min(22, cell, 480 / layers.length));
  const context = prepare(canvas, width, Math.ceil(row * layers.length));
  const [cold, warm, hot] = ["heat-cold", "heat-warm", "heat-hot"].map(colour);
  const shares = layers.map(({ heat }) => {
    const all = heat.reduce((sum, value) => sum + value, 0);
    return heat.map((value) => (all > 0 ? value / all : 0));
  });
  const most = Math.max(1e-9, ...shares.map((layer) => Math.max(...layer)));
  const gap = cell > 5 && row > 5 ? 1 : 0;
  shares.forEach((layer, y) => {
    layer.forEach((share, x) => {
      const part = Math.sqrt(share / most);
      context.fillStyle = part < 0.5 ? mix(cold, warm, part * 2) : mix(warm, hot, part * 2 - 1);
      context.fillRect(x * cell, y * row, Math.max(0.5, cell - gap), row - gap);
    });
  });
  if (selected) {
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 2;
    context.strokeRect(selected.x * cell, selected.y * row, cell - gap, row - gap);
  }
  const index = (at, size, count) => Math.min(count - 1, Math.floor(at / size));
  return { shares, at: (x, y) => ({ x: index(x, cell, columns), y: index(y, row, layers.length) }) };
}

/** Numbers over time as a line above its area; null is a time without work. */
export function line(canvas, numbers, length) {
  const [width, height] = [canvas.clientWidth || 200, 36];
  const context = prepare(canvas, width, height);
  const most = Math.max(1e-9, ...numbers.map((number) => number ?? 0));
  const x = (i) => width - ((numbers.length - 1 - i) / (length - 1)) * width;
  const y = (number) => height - 2 - ((number ?? 0) / most) * (height - 6);
  context.beginPath();
  numbers.forEach((number, i) => context.lineTo(x(i), y(number)));
  context.strokeStyle = `rgb(${colour("heat-hot").join(" ")})`;
  context.lineWidth = 1.5;
  context.stroke();
  context.lineTo(x(numbers.length - 1), height);
  context.lineTo(x(0), height);
  context.globalAlpha = 0.12;
  context.fillStyle = context.strokeStyle;
  context.fill();
}

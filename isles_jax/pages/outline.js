"use strict";
// A pixel's edges, clockwise: the neighbour behind the edge, the corner where it starts, and its direction.
const EDGES = [
  [[-1, 0], [0, 0], [0, 1]],
  [[0, 1], [0, 1], [1, 0]],
  [[1, 0], [1, 1], [0, -1]],
  [[0, -1], [1, 0], [-1, 0]],
];

// The boundary of the pixels where `inside` holds, along their edges, as closed loops.
const outline = (inside, [height, width]) => {
  const directions = new Map(), path = new Path2D();
  const holds = (row, column) => row >= 0 && column >= 0 && row < height && column < width
    && inside(row * width + column);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (!holds(row, column)) continue;
      for (const [neighbour, start, direction] of EDGES) {
        if (holds(row + neighbour[0], column + neighbour[1])) continue;
        const corner = (row + start[0]) * (width + 1) + column + start[1];
        directions.set(corner, [...(directions.get(corner) || []), direction]);
      }
    }
  }
  while (directions.size) {
    let [corner] = directions.keys();
    path.moveTo(corner % (width + 1), Math.floor(corner / (width + 1)));
    while (directions.has(corner)) {
      const open = directions.get(corner), [down, right] = open.pop();
      if (!open.length) directions.delete(corner);
      corner += down * (width + 1) + right;
      path.lineTo(corner % (width + 1), Math.floor(corner / (width + 1)));
    }
    path.closePath();
  }
  return path;
};

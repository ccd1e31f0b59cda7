'use strict';
// Sorts tables by the column that is clicked, and folds trees. A row of a tree belongs to the nearest row above that is
// less deep; rows are sorted among their siblings, with everything that is below them.
for (const table of document.querySelectorAll('table')) {
  const body = table.tBodies[0];
  const root = { below: [] };
  const path = [root];
  for (const row of body.rows) {
    const node = { row, below: [], closed: row.hasAttribute('data-folded') };
    path.length = Math.min(path.length, Number(row.dataset.depth) + 1);
    path[path.length - 1].below.push(node);
    path.push(node);
  }
  const show = (node, hidden) => {
    for (const child of node.below) {
      body.append(child.row);
      child.row.hidden = hidden;
      child.row.classList.toggle('parent', child.below.length > 0);
      child.row.classList.toggle('closed', child.closed);
      show(child, hidden || child.closed);
    }
  };
  const arm = (node) => {
    for (const child of node.below) {
      if (child.below.length > 0) {
        child.row.cells[0].addEventListener('click', () => { child.closed = !child.closed; show(root, false); });
      }
      arm(child);
    }
  };
  const key = (node, column) => {
    const cell = node.row.cells[column];
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [key(a, column), key(b, column)];
    if (x !== null && y !== null) return sign * (x - y);
    if (x !== null || y !== null) return x === null ? 1 : -1;
    return sign * a.row.cells[column].textContent.localeCompare(b.row.cells[column].textContent, 'en', { numeric: true });
  };
  const sort = (node, order) => { node.below.sort(order); node.below.forEach((child) => sort(child, order)); };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const turn = () => {
      const first = head.classList.contains('n') ? 'down' : 'up';
      const order = head.dataset.order === first ? (first === 'up' ? 'down' : 'up') : first;
      heads.forEach((other) => delete other.dataset.order);
      head.dataset.order = order;
      sort(root, compare(column, order === 'up' ? 1 : -1));
      show(root, false);
    };
    head.addEventListener('click', turn);
    head.addEventListener('keydown', (event) => { if (event.key === 'Enter') turn(); });
  });
  arm(root);
  show(root, false);
}

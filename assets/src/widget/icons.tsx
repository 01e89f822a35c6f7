import type { ComponentChildren } from 'preact';

function icon(children: ComponentChildren) {
  return (
    <svg class="icon" viewBox="0 0 24 24" width="20" height="20" aria-hidden="true" focusable="false">
      {children}
    </svg>
  );
}

const line = { fill: 'none', stroke: 'currentColor', 'stroke-width': '2', 'stroke-linecap': 'round', 'stroke-linejoin': 'round' } as const;

export const Menu = () => icon(<path {...line} d="M4 7h16M4 12h16M4 17h16" />);
export const Plus = () => icon(<path {...line} d="M12 5v14M5 12h14" />);
export const Up = () => icon(<path {...line} d="M12 19V6M6 11.5 12 5.5l6 6" />);
export const Square = () => icon(<rect x="7" y="7" width="10" height="10" rx="2" fill="currentColor" />);
export const Down = () => icon(<path {...line} d="m6 9 6 6 6-6" />);
export const Back = () => icon(<path {...line} d="M19 12H5M11 6l-6 6 6 6" />);
export const Spark = () =>
  icon(<path fill="currentColor" d="M12 3c.6 4.9 3.1 7.9 9 9-5.9 1.1-8.4 4.1-9 9-.6-4.9-3.1-7.9-9-9 5.9-1.1 8.4-4.1 9-9Z" />);
export const Clock = () => icon(<path {...line} d="M12 8v4.5l3 1.5M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16Z" />);
export const Redo = () => icon(<path {...line} d="M19.5 12a7.5 7.5 0 1 1-2.2-5.3L19.5 9M19.5 4v5h-5" />);
export const Document = () => icon(<path {...line} d="M7 3.5h7l4 4v13H7a1 1 0 0 1-1-1v-15a1 1 0 0 1 1-1ZM14 3.5v4h4" />);
export const Tick = () => icon(<path {...line} d="m5 12.5 4.5 4.5L19 7.5" />);
export const Bubble = () =>
  icon(<path {...line} d="M5 5h14a1.5 1.5 0 0 1 1.5 1.5v9A1.5 1.5 0 0 1 19 17h-7l-4.5 3.5V17H5a1.5 1.5 0 0 1-1.5-1.5v-9A1.5 1.5 0 0 1 5 5Z" />);

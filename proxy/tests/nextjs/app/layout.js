import './style.css';
import Tab from './tab';

export const metadata = { icons: { icon: 'data:,' } };

export default function Layout({ children }) {
  return (
    <html lang="en">
      <body>
        <Tab />
        {children}
      </body>
    </html>
  );
}

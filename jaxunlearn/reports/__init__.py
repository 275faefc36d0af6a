"""What a run leaves for people: pages, tables, charts, pictures, and the files behind them."""

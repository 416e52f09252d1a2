DROP TABLE canaries, rebuilds, swept, rungs;

DROP TABLE leader, canaries, rebuilds, swept, rungs;

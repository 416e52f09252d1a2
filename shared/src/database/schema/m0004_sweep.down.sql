DROP TABLE swept;

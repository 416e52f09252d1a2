DROP TABLE rungs, arrears_outstanding, activity, set_aside, outbox;
DROP FUNCTION kyhan_outbox_notify();

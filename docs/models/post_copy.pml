/*
 * Post-copy recovery: the service runs at the destination, by the store as well, and some of its
 * pages are still at the source. What may become of them when the link is cut, a page server dies, or
 * the source's node is lost? README.md beside this has the rest.
 *
 * Faults as in transaction.pml: any number of them until `calm`.
 */

#ifndef MUTATION  /* a rule is broken: README.md */
#define MUTATION 0
#endif

#define PAGES 2
#define NOBODY PAGES

mtype = { MISSING, THERE, POISONED };

mtype page[PAGES] = MISSING;  /* at the destination */
bool written[PAGES];          /* by the service, since it is there */
bool kept[PAGES] = true;      /* at the source, whose tree the freezer holds */
bool sent[PAGES];             /* over this connection */
bool touched[PAGES];
byte waits_for = NOBODY;      /* the service stands still at this page */

bool connected = true;
bool lost = false;            /* the source's node will not come back: somebody has said so */
bool removed = false;         /* the source's copy, which nobody needs any more */
bool source_runs = false;
bool overwritten = false;     /* a page came a second time and took a write with it */
bool calm = false;

chan requests = [1] of { byte };
chan pages = [1] of { byte };
chan acknowledged = [1] of { byte };

inline disconnect() {
  connected = false;
  do :: requests ? _ :: pages ? _ :: acknowledged ? _
     :: empty(requests) && empty(pages) && empty(acknowledged) -> break od
}

/* The service touches each page once, in any order. */
active proctype service() {
  byte p;
end_done:
  do
  :: atomic { !touched[0] -> touched[0] = true; p = 0; waits_for = p }
     page[p] != MISSING;
     atomic { waits_for = NOBODY; written[p] = (page[p] == THERE) }
  :: atomic { !touched[1] -> touched[1] = true; p = 1; waits_for = p }
     page[p] != MISSING;
     atomic { waits_for = NOBODY; written[p] = (page[p] == THERE) }
  od
}

/* At the source: what is asked for, and in the background the rest. */
active proctype page_server() {
  byte p;
end_served:
  do
  :: atomic { connected && nfull(pages) && requests ? [p] -> requests ? p;
       if :: kept[p] -> pages ! p; sent[p] = true :: else fi }
  :: atomic { connected && nfull(pages) && kept[0] && !sent[0] -> pages ! 0; sent[0] = true }
  :: atomic { connected && nfull(pages) && kept[1] && !sent[1] -> pages ! 1; sent[1] = true }
  :: atomic { MUTATION == 1 && !lost && sent[0] -> kept[0] = false }
  :: atomic { acknowledged ? p -> kept[p] = false }
  :: atomic { !lost && !removed && !kept[0] && !kept[1] -> removed = true }
  od
}

/* At the destination: faults, and what arrives. */
active proctype fault_service() {
  byte p;
end_idle:
  do
  :: atomic { connected && waits_for != NOBODY && page[waits_for] == MISSING && empty(requests) &&
       !sent[waits_for] -> requests ! waits_for }
  :: atomic { nfull(acknowledged) && pages ? [p] -> pages ? p;
       if
       :: page[p] == MISSING -> page[p] = THERE  /* UFFDIO_COPY */
       :: else -> overwritten = (MUTATION == 2 && written[p])  /* EEXIST: it is there */
       fi;
       acknowledged ! p }
  /* Poison is for a source that is lost, not for one that does not answer. */
  :: atomic { page[0] == MISSING && (lost || (MUTATION == 3 && !connected)) -> page[0] = POISONED }
  :: atomic { page[1] == MISSING && (lost || (MUTATION == 3 && !connected)) -> page[1] = POISONED }
  od
}

active proctype world() {
end_calm:
  do
  :: atomic { !calm && connected -> disconnect() }  /* the link, or either of the two servers */
  :: atomic { !connected && !lost -> connected = true;  /* anew, from what is missing */
       if :: MUTATION == 4 :: else -> sent[0] = false; sent[1] = false fi }
  :: atomic { !calm && !lost && !removed -> lost = true; kept[0] = false; kept[1] = false;
       source_runs = false; disconnect() }
  :: atomic { MUTATION == 5 && !connected && !lost && !removed -> source_runs = true }
  :: atomic { !calm -> calm = true }
  od
}

#define IS_SOMEWHERE(p) (page[p] != MISSING || kept[p] || lost)
#define IS_SETTLED(p) (page[p] == THERE || (page[p] == POISONED && lost))

ltl never_two { [] !source_runs }
ltl pages_kept { [] (IS_SOMEWHERE(0) && IS_SOMEWHERE(1)) }
ltl poison_if_lost { [] (lost || (page[0] != POISONED && page[1] != POISONED)) }
ltl writes_kept { [] !overwritten }
ltl settled { [] (calm -> <> [] (IS_SETTLED(0) && IS_SETTLED(1) && waits_for == NOBODY && (removed || lost))) }

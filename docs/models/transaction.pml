/*
 * One move of one service, from S to D: who may let it run, whatever dies, is cut or gets lost.
 * README.md beside this says what is left out, which code each part stands for, and how to run it.
 *
 * There is no limit to the number of faults until `calm`: movers and daemons die, waits run out,
 * answers of the store are lost, and its changes made late. A link that is cut and healed is both a message that takes long and
 * waits that run out; so is a keeper of the store that dies, since the store is durable. What has to
 * hold in the end is asked for from `calm` on.
 */

#ifndef MUTATION          /* a rule of the transaction is broken: README.md, "Mutations" */
#define MUTATION 0
#endif

#define S 0  /* source */
#define D 1  /* destination */

/* A copy of the service. Traced ones (HUSKS, STOPPED) change with their mover's death, which HELD,
   by the cgroup freezer, does not. */
mtype = { GONE, HUSKS, STOPPED, HELD, RUNS };
mtype = { OUTCOME_INVALID, OUTCOME_MOVED, OUTCOME_ROLLED_BACK, OUTCOME_UNKNOWN };
mtype = { NONE, OK, ABORTED, UNSURE };  /* the store's answer; or REFUSED, nothing was changed */
mtype = { UNANSWERED, COMMITTED, NOT_COMMITTED, UNDECIDED };     /* CommitAnswer */
mtype = { ASKED, TAKEN, PREPARED, REFUSED };                     /* PrepareReplica, or NONE */
mtype = { NOTHING, THAWED, ALL };                                /* Node::Undone */
mtype = { MARK, BACK, SWAP, FENCE };                             /* the changes of the record */

/* Durable. */
bit owner = S;             /* the ServiceRecord in the store ... */
bool migrating = false;    /* ... its state: SERVICE_RUNNING or SERVICE_MIGRATING ... */
byte revision = 0;         /* ... and what compare-and-swap compares */
#define MARKED 1           /* the revision that PrepareReplica names; those after it are one */
bool journal[2];
mtype copy[2] = { RUNS, GONE };
bool gate[2] = { true, false };  /* frames pass both ways */

/* Processes. A mover runs once; a daemon that dies is started again at once. */
chan killed[2] = [0] of { bit };  /* of a mover, and of a daemon */
chan died[2] = [0] of { bit };
bool mover[2];
bool ended[2];             /* the mover has ended: its connections are closed */
bool orphan[2];            /* its daemon has died, or was started again */
mtype finished[2] = OUTCOME_INVALID;  /* the mover's last message */

/* Between movers. */
bool connected, end_sent, active_said, failed_said;
/* Between daemons. */
mtype prepare = NONE;      /* the call PrepareReplica */
bool called_off;           /* AbortReplica */
/* Between a daemon and its mover. */
bool cancel_told, end_mark, commit_asked;
mtype commit_answer = UNANSWERED;

bool calm = false;         /* no faults from here on */
bool asked = false;        /* the one move */
mtype late[2] = NONE;      /* a request on its way to the keeper, which nobody waits for */
bool looking = false;      /* remove_strays() is under way */

/* A wait has run out, or the user cancels. */
#define WAITED_ENOUGH (!calm)

inline end_mover(side) {
  atomic {
    if
    :: mover[side] -> stop_mover(side); killed[side] ! 0
    :: else
    fi
  }
}
inline stop_mover(side) {
  d_step {
    mover[side] = false; ended[side] = true; orphan[side] = false;
    if
    :: copy[side] == STOPPED -> copy[side] = RUNS  /* the kernel resumes tracees */
    :: copy[side] == HUSKS -> copy[side] = GONE    /* parent-death signal */
    :: MUTATION == 6 && side == S && copy[S] == HELD -> copy[S] = RUNS
    :: else
    fi;
    if
    :: side == S -> active_said = false; failed_said = false
    :: else -> end_sent = false; connected = false
    fi
  }
}

/* Any change is a new revision; none is made any more once the destination has it. A request that is
   late names the revision before, and has no effect any more. */
inline change_record(change) {
  d_step {
    assert(owner == S);
    owner = (change == SWAP -> D : S);
    migrating = (change == MARK || (change == FENCE && migrating));
    revision = (revision <= MARKED -> revision + 1 : revision);
    late[S] = NONE; late[D] = NONE
  }
}

/* Store::compare_and_swap, asked by `side` */
inline compare_and_swap(side, expected, change) {
  atomic {
    if
    :: revision == expected -> change_record(change); answer = OK
    :: revision != expected -> answer = ABORTED
    :: !calm -> answer = REFUSED  /* as for a full disk: nothing_changed() */
    :: !calm -> answer = UNSURE   /* not reached, or an error of any other kind */
    :: !calm && revision == expected -> change_record(change); answer = UNSURE
    :: !calm && revision == expected && late[side] == NONE ->
       late[side] = change; answer = UNSURE
    fi
  }
}

/* SourceSession */
active proctype source_mover() {
  mtype outcome = OUTCOME_INVALID;
end_not_started:
  {
    mover[S];
    if
    :: !ended[D] -> connected = mover[D]
    :: ended[D] || WAITED_ENOUGH -> goto roll_back
    fi;
source_connected:  /* prepare(), rounds(): it runs */
    if :: cancel_told || orphan[S] -> goto roll_back :: else fi;
source_freeze:
    copy[S] = STOPPED;
    copy[S] = HELD;
    gate[S] = false;
source_frozen:  /* final_state(), final_pages() */
    if :: cancel_told || orphan[S] -> goto roll_back :: else fi;
    if  /* hear_that_it_is_there() */
    :: !ended[D] && !failed_said
    :: ended[D] || failed_said || WAITED_ENOUGH -> goto roll_back
    fi;
source_before_end_mark:
    if :: MUTATION == 8 :: else -> end_mark = true fi;
    end_sent = mover[D];
source_after_end_mark:  /* wait_for_active(); a cancel changes nothing any more */
    if
    :: active_said -> outcome = OUTCOME_MOVED  /* the port is down since the freeze */
    :: failed_said -> goto roll_back           /* told_failed_ */
    :: (ended[D] && !active_said && !failed_said) || WAITED_ENOUGH ->
       if :: MUTATION == 1 -> goto roll_back :: else fi;
       outcome = OUTCOME_UNKNOWN  /* leave_frozen() */
    :: MUTATION == 9 && cancel_told -> goto roll_back
    fi;
    goto finish;
roll_back:
source_thaw:
    copy[S] = RUNS;
    gate[S] = true;
    outcome = OUTCOME_ROLLED_BACK;
finish:
    atomic { finished[S] = outcome; outcome = OUTCOME_INVALID; stop_mover(S) }
  } unless { killed[S] ? 0 }
}

/* DestinationSession */
active proctype destination_mover() {
end_not_started:
  {
    mover[D];
    if  /* meet() */
    :: connected
    :: ended[S] || !journal[S] || WAITED_ENOUGH -> goto fail
    fi;
destination_connected:
    if  /* the end mark comes before the end of the connection */
    :: end_sent
    :: (ended[S] && !end_sent) || copy[D] == GONE || WAITED_ENOUGH -> goto fail
    fi;
destination_received:  /* make_ready(): the freezer, then release() */
    atomic { if :: copy[D] == HUSKS -> copy[D] = HELD :: else -> goto fail fi }
    if :: MUTATION == 2 -> copy[D] = RUNS :: else fi;
destination_ready:  /* commit() */
    if
    :: orphan[D] -> goto fail  /* the request cannot be sent */
    :: else -> commit_asked = true
    fi;
    if
    :: commit_answer == COMMITTED
    :: commit_answer == NOT_COMMITTED -> goto fail
    :: commit_answer == UNDECIDED ||
       (commit_answer == UNANSWERED && (orphan[D] || !calm)) ->
       if :: MUTATION == 7 -> goto fail :: else -> goto leave fi  /* decided_elsewhere_ */
    fi;
destination_committed:
    atomic { if :: copy[D] == GONE -> goto leave :: else -> copy[D] = RUNS fi }  /* activate() */
    gate[D] = true;  /* open() */
    active_said = mover[S];
    atomic { finished[D] = OUTCOME_MOVED; stop_mover(D); goto over }
fail:
    failed_said = mover[S];
    atomic { copy[D] = GONE; finished[D] = OUTCOME_ROLLED_BACK; stop_mover(D); goto over }
leave:
    atomic { finished[D] = OUTCOME_UNKNOWN; stop_mover(D) }
over:
    skip
  } unless { killed[D] ? 0 }
}

/* SourceMigration, Node::settle_source, Node::recover */
active proctype source_daemon() {
  mtype answer = NONE, undone = NOTHING;
again:
  {
    if  /* recover() */
    :: journal[S] ->
       if
       :: MUTATION == 4 -> copy[S] = RUNS; gate[S] = true; journal[S] = false; goto end_served
       :: else -> goto settle_source
       fi
    :: !journal[S] && asked -> goto settle_service
    :: !journal[S] && !asked
    fi;
    /* mark_migrating() */
    atomic { asked = true; journal[S] = true }
    compare_and_swap(S, 0, MARK);
    if
    :: answer == OK -> answer = NONE
    :: answer == UNSURE && MUTATION != 17 -> undone = ALL; goto settle_source
    :: else -> journal[S] = false; goto end_served
    fi;
    /* prepare_destination() */
    prepare = ASKED;
    if
    :: prepare == PREPARED -> prepare = NONE
    :: prepare == REFUSED -> prepare = NONE; undone = ALL; goto settle_source
    :: WAITED_ENOUGH -> undone = ALL; goto settle_source
    fi;
node_before_mover:
    mover[S] = true;
    do  /* follow() */
    :: !calm && !cancel_told -> cancel_told = true
    :: ended[S] -> break
    od;
    /* conclude() */
    assert(finished[S] != OUTCOME_MOVED || owner == D);
    assert(finished[S] != OUTCOME_ROLLED_BACK || owner == S);
    if
    :: finished[S] == OUTCOME_ROLLED_BACK || finished[S] == OUTCOME_MOVED -> undone = ALL
    :: (!end_mark || MUTATION == 3) &&
       (finished[S] == OUTCOME_INVALID || finished[S] == OUTCOME_UNKNOWN) ->
       copy[S] = RUNS; gate[S] = true;  /* roll_back_at_once() */
       undone = THAWED; called_off = journal[D]
    :: else
    fi;
    if :: MUTATION == 10 && finished[S] == OUTCOME_UNKNOWN -> copy[S] = GONE :: else fi;
settle_source:
    end_mover(S);
    d_step { finished[S] = OUTCOME_INVALID; end_mark = false; cancel_told = false; ended[S] = true }
    do  /* settle_owner_at_source(): a fence for the destination's swap, and for our own mark. Reading
           and replacing are one step here: a record that has changed in between is read again, and
           nothing else happens. */
    :: atomic { owner == S && MUTATION != 5 && (migrating || MUTATION != 20) ->
         compare_and_swap(S, revision, BACK) };
       if
       :: answer == OK -> break
       :: answer != OK && MUTATION == 16 -> goto end_served
       :: else -> answer = NONE
       fi
    :: else -> break
    od;
    answer = NONE;
    if
    :: owner == D -> atomic { copy[S] = GONE; gate[S] = false } journal[S] = false; goto end_served
    :: else
    fi;
node_rolling_back:  /* Services::roll_back() */
    if :: undone == NOTHING -> gate[S] = true; copy[S] = RUNS :: else fi;
node_rolled_back:
    called_off = journal[D];
    journal[S] = false;
    goto end_served;
settle_service:  /* a record that says "migrating", without a note */
    atomic { if :: owner == S && migrating -> copy[S] = RUNS; change_record(BACK) :: else fi };
end_served:
    atomic { undone = NOTHING; answer = NONE };
end_idle:
    false
  } unless { atomic { died[S] ? 0 -> undone = NOTHING; answer = NONE; goto again } }
}

/* ReplicaSession, Node::settle_destination, Node::recover */
active proctype destination_daemon() {
  mtype answer = NONE;
  bool unsure, committed;
again:
  {
    if :: journal[D] && MUTATION != 11 -> goto settle_destination :: else fi;
end_serving:
    atomic { prepare == ASKED -> prepare = TAKEN };
    /* prepare() */
    if
    :: revision == MARKED && migrating
    :: true -> prepare = REFUSED; goto end_serving  /* the store has moved on, or a refusal */
    fi;
    journal[D] = true;
    atomic { copy[D] = HUSKS; mover[D] = true }
    prepare = PREPARED;
listen:
    if
    :: commit_asked && commit_answer == UNANSWERED && !called_off
    :: (ended[D] && (!commit_asked || commit_answer != UNANSWERED)) || called_off -> goto run_ended
    fi;
node_before_commit:  /* swap_owner() */
    compare_and_swap(D, MARKED, SWAP);
    if
    :: answer == OK -> committed = true
    :: answer == ABORTED && unsure && owner == D -> committed = true
    :: answer == ABORTED && !(unsure && owner == D)
    :: answer == REFUSED && (!unsure || MUTATION == 15)
    :: answer == UNSURE && MUTATION == 12
    :: (answer == UNSURE && MUTATION != 12) || (answer == REFUSED && unsure) ->
       unsure = true; goto node_before_commit
    :: !calm && (answer == UNSURE || (answer == REFUSED && unsure)) ->
       commit_answer = UNDECIDED; goto listen  /* stopping() */
    fi;
node_after_commit:
    if :: committed -> commit_answer = COMMITTED :: else -> commit_answer = NOT_COMMITTED fi;
    goto listen;
run_ended:
    end_mover(D);
    if :: committed && finished[D] == OUTCOME_MOVED -> journal[D] = false; goto end_serving
    :: else fi;
settle_destination:
    end_mover(D);
    d_step { finished[D] = OUTCOME_INVALID; commit_asked = false; commit_answer = UNANSWERED;
      called_off = false; unsure = false; committed = false; answer = NONE; ended[D] = true }
    do  /* settle_owner_at_destination() */
    :: atomic { owner == S && migrating && MUTATION != 14 -> compare_and_swap(D, revision, FENCE) };
       if :: answer == OK -> break :: else -> answer = NONE fi
    :: else -> break
    od;
    answer = NONE;
    if
    :: owner == D ->
       do  /* Services::activate(), keep_trying() */
       :: copy[D] != GONE -> copy[D] = RUNS; gate[D] = true; break
       :: copy[D] == GONE -> break
       :: !calm -> if :: MUTATION == 18 -> break :: else fi
       od
    :: owner == S ->
       if :: MUTATION == 13 && copy[D] == HELD -> copy[D] = RUNS :: else fi;
       atomic { copy[D] = GONE; gate[D] = false }
    fi;
    journal[D] = false;
    goto end_serving
  } unless { atomic { died[D] ? 0 -> unsure = false; committed = false; answer = NONE; goto again } }
}

active proctype keeper() {
end_keeping:
  do
  :: atomic { late[S] != NONE -> change_record(late[S]) }
  :: atomic { late[D] != NONE -> change_record(late[D]) }
  od
}

#if MUTATION == 19
/* Node::remove_strays(): reads the record, then removes. */
active proctype strays() {
end_looking:
  do
  :: looking && owner == S -> atomic { looking -> looking = false; copy[D] = GONE }
  :: looking && owner == D -> looking = false
  od
}
#endif

active proctype world() {
end_calm:
  do
  :: !calm && mover[S] -> end_mover(S)
  :: !calm && mover[D] -> end_mover(D)
  :: atomic { !calm -> orphan[S] = mover[S]; died[S] ! 0 }
  :: atomic { !calm -> orphan[D] = mover[D]; looking = (MUTATION == 19);
       if  /* the call breaks, and is not made again */
       :: prepare == ASKED || prepare == TAKEN -> prepare = REFUSED
       :: else
       fi;
       died[D] ! 0 }
  :: !calm -> calm = true
  od
}

/* Two copies that run. */
#define NEVER_TWO (!(copy[S] == RUNS && copy[D] == RUNS))
/* Whoever has it by the store has a copy that runs, or that is complete and only has to be let go. */
#define NEVER_NONE ((owner == S && copy[S] != GONE) || \
                    (owner == D && (copy[D] == HELD || copy[D] == RUNS)))
/* After the commit point; change_record() has the other half. */
#define NO_WAY_BACK (owner == S || copy[S] != RUNS)
/* One copy runs and is reached, nothing is left at the other end, nobody is busy. */
#define ONE_IS_LEFT \
  (!migrating && !journal[S] && !journal[D] && !mover[S] && !mover[D] && \
   ((owner == S && copy[S] == RUNS && gate[S] && copy[D] == GONE) || \
    (owner == D && copy[D] == RUNS && gate[D] && copy[S] == GONE)))

ltl safe { [] (NEVER_TWO && NEVER_NONE && NO_WAY_BACK) }
ltl settled { [] (calm -> <> [] ONE_IS_LEFT) }
/* `safe`, one by one */
ltl never_two { [] NEVER_TWO }
ltl never_none { [] NEVER_NONE }
ltl no_way_back { [] NO_WAY_BACK }

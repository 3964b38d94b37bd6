# SPDX-License-Identifier: GPL-2.0-only
"""Starts agents on other hosts over the system's ssh and holds both ends of each.

    command      the command line of ssh and the script that becomes the agent there
    session      one agent on one host: login, sudo, its lines on stderr, its end
    passwords    asks for sudo's password, once per host
    hosts        agents on several hosts, started together

Everything is asked while the terminal is still free: ssh asks for its own keys and
passwords; sudo's password is asked for here, and only if the sudo there wants one.
The password is sent as a line of sudo's stdin, never as an argument or in the
environment.  There is no master connection to leave behind: each ssh is a child of
this process, and the agent ends when its stdin does, however this process ends.
Must not decode the stream.
"""
